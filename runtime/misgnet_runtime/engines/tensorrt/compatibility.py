"""Checks whether a plan can run on a machine, by comparing compatibility information of both.

TensorRT has no API that checks a plan before deserialising it, which runs native code. The compatibility information is
therefore kept in the manifest, or in the record of a plan that was compiled here, and compared first.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from misgnet_runtime.engines.cuda.driver import CudaDriver, Device
from misgnet_runtime.engines.tensorrt.bindings import parse_version, same_version, vendor_version
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.machine import architecture, available_memory, describe_machine


@dataclass(frozen=True, kw_only=True)
class PlanCompatibility:
    """Compatibility information of a plan: the versions and hardware that it was built for."""

    vendor: str  # "rtx" or "tensorrt"
    vendor_version: str
    compute_capabilities: tuple[str, ...]  # such as "sm86"
    platform: str  # see this_platform
    cuda_driver: str = ""  # CUDA version of the driver that it was built with; empty: built without a driver
    plan_bytes: int = 0  # size of the plan, which is also the device memory for its weights
    # Further device memory that a stream needs, with the smallest optimization profile alone; 0: unknown.
    stream_bytes: int = 0

    def memory_bytes(self, streams: int) -> int:
        """Returns the least device memory that the plan needs."""
        return self.plan_bytes + streams * self.stream_bytes


@dataclass(frozen=True, kw_only=True)
class MachineCompatibility:
    """Compatibility information of a machine: TensorRT module, GPU, driver and system."""

    vendor: str  # "rtx" or "tensorrt"
    vendor_version: str
    compute_capability: str
    platform: str
    cuda_driver: str = ""  # newest CUDA version that the driver supports
    free_bytes: int | None = None  # device memory; None: unknown


def this_platform() -> str:
    """Returns the system and processor, such as ``linux-x86_64`` or ``linux-aarch64``."""
    return f"{platform.system().lower()}-{architecture()}"


def device_name(device: Device) -> str:
    """Returns the GPU's name and, on a board, the board's model: CUDA names the GPU of every Jetson Orin alike."""
    model = describe_machine().get("model")
    return f"{device.name}, {model}" if model else device.name


def this_machine(vendor: str, module: Any, driver: CudaDriver, device: Device) -> MachineCompatibility:
    """Returns the compatibility information of this machine; ``module`` is the imported TensorRT module."""
    return MachineCompatibility(
        vendor=vendor, vendor_version=vendor_version(module), compute_capability=device.compute_capability,
        platform=this_platform(), cuda_driver=driver.version(), free_bytes=free_bytes(driver, device),
    )  # fmt: skip


def free_bytes(
    driver: CudaDriver, device: Device, *, system_memory: Callable[[], int | None] = available_memory
) -> int:
    """Returns the device memory that is available; for an integrated GPU, that of ``system_memory`` if known."""
    system = system_memory() if device.integrated else None
    return driver.free_memory() if system is None else system


def check_plan_fits(
    plan: PlanCompatibility, machine: MachineCompatibility, streams: int = 1, rebuild: str | None = None
) -> None:
    """Raises UnavailableError if the plan cannot run on the machine.

    The message names both values and the command that rebuilds the plan (``rebuild``; default: derived from the plan).
    """
    if misfit := _misfit(plan, machine):
        # A plan for RTX is rebuilt for this GPU's compute capability; TensorRT always builds for its own GPU.
        target = f"rtx-{machine.compute_capability}" if plan.vendor == "rtx" else "tensorrt"
        command = rebuild or f"misgnet-export build ... --target {target}"
        raise UnavailableError(
            f"the plan does not fit this machine: {misfit}; rebuild with: {command}",
            short=misfit.removeprefix("it was "),
        )
    if machine.free_bytes is not None:
        check_memory(plan.memory_bytes(streams), machine.free_bytes, streams)


def check_memory(needed: int, free: int, streams: int) -> None:
    """Raises UnavailableError if a plan and its streams need more device memory than is free, both in bytes."""
    if needed > free:
        raise UnavailableError(
            f"the plan does not fit into free GPU memory: with {plural(streams, 'stream')} it takes at least "
            f"{mebibytes(needed)}, and {mebibytes(free)} are free; stop other programs that use the GPU, or lower "
            "--streams",
            short="too little GPU memory",
        )


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _misfit(plan: PlanCompatibility, machine: MachineCompatibility) -> str | None:
    if plan.vendor != machine.vendor:
        return f"it was built by {plan.vendor} but opened with {machine.vendor}"
    if plan.platform != machine.platform:
        return f"it was built on {plan.platform}, this machine is {machine.platform}"
    if not same_version(plan.vendor_version, machine.vendor_version):
        return f"it was built by {plan.vendor} {plan.vendor_version}, the installed version is {machine.vendor_version}"
    if machine.compute_capability not in plan.compute_capabilities:
        built_for = ", ".join(plan.compute_capabilities)
        return f"it was built for {built_for}, this GPU is {machine.compute_capability}"
    if plan.cuda_driver and parse_version(machine.cuda_driver) < parse_version(plan.cuda_driver):
        return f"it was built with a driver for CUDA {plan.cuda_driver}, this driver is for CUDA {machine.cuda_driver}"
    return None
