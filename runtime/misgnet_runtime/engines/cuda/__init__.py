"""Opens CUDA through cuda-python or pycuda, whichever is installed, with only the calls that an engine needs.

All calls use device 0 and its primary context, which is the context that TensorRT uses.
"""

from __future__ import annotations

import importlib
from typing import Any

from misgnet_runtime.engines.cuda.cuda_python import CudaPython
from misgnet_runtime.engines.cuda.driver import Bytes, CudaDriver, CudaGraphs, Device
from misgnet_runtime.engines.cuda.pycuda import PyCuda
from misgnet_runtime.errors import UnavailableError

__all__ = ["Bytes", "CudaDriver", "CudaGraphs", "CudaPython", "Device", "PyCuda", "first_device", "open_driver"]


def open_driver() -> CudaDriver:
    """Opens CUDA on this machine, through the first library that works.

    A library may be installed and find no driver although the other one does: cuda-python has its own copy of the CUDA
    runtime, which refuses a driver that is older than it is.

    Raises:
        UnavailableError: No library is installed or finds a driver; the message has the reason of each.
    """
    reasons, installed = [], False
    for name, load, driver in (
        ("cuda-python", _load_cuda_python, CudaPython),
        ("pycuda", _load_pycuda, PyCuda),
    ):
        try:
            opened: CudaDriver = driver(load())
        except ImportError as error:
            reasons.append(f"{name}: {error}")
        except UnavailableError as error:
            reasons.append(f"{name}: {error}")
            installed = True
        else:
            return opened
    if installed:
        raise UnavailableError(
            f"no CUDA driver can be used ({'; '.join(reasons)}); install or update the NVIDIA driver, or a "
            "cuda-python that is not newer than it (JetPack 6: 'cuda-python>=12.6.1,<12.9')",
            short="no NVIDIA driver",
        )
    raise UnavailableError(
        f"no CUDA library for Python can be imported ({'; '.join(reasons)}); install one with: "
        "pip install cuda-python, or, if the CUDA toolkit is installed, pip install 'misgnet-export[pycuda]'",
        short="no CUDA library for Python",
    )


def first_device(driver: CudaDriver) -> Device:
    """Returns device 0; raises UnavailableError if there is no device."""
    if driver.device_count() < 1:
        raise UnavailableError(
            f"no CUDA device was found through {driver.library}; check the output of nvidia-smi", short="no NVIDIA GPU"
        )
    return driver.device()


def _load_cuda_python() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return importlib.import_module("cuda.cudart")  # cuda-python before 12.6


def _load_pycuda() -> Any:
    return importlib.import_module("pycuda.driver")
