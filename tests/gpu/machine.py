"""Finds the GPU of this machine and describes device, drivers, versions and checkout."""

from __future__ import annotations

import re
import subprocess
from importlib import import_module
from pathlib import Path

from gpu.record import Machine
from misgnet_runtime.engines.cuda import Device, first_device, open_driver
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.machine import ROOT, describe_machine, installed_versions, read_text

PACKAGES = (
    "torch", "triton", "torch-tensorrt", "tensorrt", "tensorrt-rtx", "cuda-python", "cuda-bindings", "pycuda",
    "onnxruntime", "onnxruntime-gpu", "onnx", "numpy", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "pytest",
)  # fmt: skip


def find_gpu() -> Machine:
    """Describes this machine and its GPU, found through cuda-python or pycuda, or else through PyTorch.

    Raises:
        UnavailableError: There is no GPU; the message holds the reason of each library.
    """
    try:
        driver = open_driver()
        return _machine(first_device(driver), driver.version())
    except UnavailableError as error:
        found = _found_by_torch()
        if isinstance(found, str):
            raise UnavailableError(f"{error}; {found}") from error
        return _machine(*found)


def describe_cpu() -> Machine:
    """Describes this machine without a GPU, for ``--cpu``."""
    host = describe_machine()
    return Machine(
        device=host["processor"], compute_capability="", memory_gib=host["memory_gib"] or 0.0, cuda_driver="",
        nvidia_driver="", host=host, versions=installed_versions(PACKAGES),
    )  # fmt: skip


def file_name(device: str) -> str:
    """Returns the name of a device's files: "NVIDIA H200" as "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"


def commit(checkout: Path) -> str:
    """Returns the commit of the checkout, with "+" if tracked files were changed; "unknown" without git."""
    head, changed = (_git(checkout, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    return "unknown" if head is None or changed is None else head + "+" * bool(changed)


def _git(checkout: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _machine(device: Device, cuda_driver: str) -> Machine:
    return Machine(
        device=device.name, compute_capability=device.compute_capability,
        memory_gib=round(device.memory_bytes / 2**30, 1), cuda_driver=cuda_driver, nvidia_driver=_nvidia_driver(),
        host=describe_machine(), versions=installed_versions(PACKAGES),
    )  # fmt: skip


def _nvidia_driver(root: Path = ROOT) -> str:
    text = read_text(root / "proc/driver/nvidia/version") or ""
    found = re.search(r"(?:Kernel Module|x86_64|aarch64)\s+(\d+[\d.]+)", text)
    return found[1] if found else ""


def _found_by_torch() -> tuple[Device, str] | str:
    """Returns the device and the CUDA version of PyTorch, or why there is none."""
    try:
        torch = import_module("torch")
    except ImportError as error:
        return f"torch: {error}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    properties = torch.cuda.get_device_properties(0)
    capability = f"sm{properties.major}{properties.minor}"
    return Device(properties.name, capability, properties.total_memory), str(torch.version.cuda)
