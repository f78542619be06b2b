"""The little of CUDA that an engine needs, over cuda-python or pycuda, whichever is installed.

Addresses and stream handles are plain integers, sizes are bytes, pinned host memory is a NumPy array of
uint8.
Everything is on device 0, in its primary context, the one that the vendor's runtime uses.
A failed call is an UnavailableError with the call's and the error's name.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import UnavailableError

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Device:
    """A GPU; ``compute_capability`` is written as "sm86"."""

    name: str
    compute_capability: str
    memory_bytes: int


class CudaDriver(Protocol):
    """Copies are queued on a stream: a host array may be reused or read only after ``synchronize``."""

    library: str

    def device_count(self) -> int: ...

    def device(self) -> Device: ...

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def allocate_host(self, size: int) -> Bytes: ...

    def free_host(self, host: Bytes) -> None:
        """Release what ``allocate_host`` gave; neither it nor a view of it may be touched again."""

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def copy_to_device(self, address: int, host: Bytes, stream: int) -> None: ...

    def copy_to_host(self, host: Bytes, address: int, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None: ...


def open_driver() -> CudaDriver:
    """The CUDA of this machine.

    Raises UnavailableError where no library is installed, or where it finds no driver.
    """
    reasons = []
    for name, load, driver in (
        ("cuda-python", _load_cuda_python, CudaPython),
        ("pycuda", _load_pycuda, PyCuda),
    ):
        try:
            library = load()
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        opened: CudaDriver = driver(library)
        return opened
    raise UnavailableError(
        f"no CUDA library for Python can be imported ({'; '.join(reasons)}); install one with: "
        "pip install cuda-python, or pip install 'misgnet-export[pycuda]' where the CUDA toolkit is"
    )


def first_device(driver: CudaDriver) -> Device:
    """Device 0; UnavailableError where there is none."""
    if driver.device_count() < 1:
        raise UnavailableError(f"no CUDA device was found through {driver.library}; see what nvidia-smi says")
    return driver.device()


def _load_cuda_python() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return importlib.import_module("cuda.cudart")  # cuda-python before 12.6


def _load_pycuda() -> Any:
    return importlib.import_module("pycuda.driver")


class CudaPython:
    """CUDA through cuda-python's binding of the runtime API."""

    library = "cuda-python"

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        try:
            self.device_count()
        except UnavailableError as error:
            raise UnavailableError(f"{error}; is an NVIDIA driver installed that is new enough?") from error

    def device_count(self) -> int:
        return int(self._call("cudaGetDeviceCount"))

    def device(self) -> Device:
        facts = self._call("cudaGetDeviceProperties", 0)
        name = facts.name.decode() if isinstance(facts.name, bytes) else str(facts.name)
        return Device(name.rstrip("\0"), f"sm{facts.major}{facts.minor}", int(facts.totalGlobalMem))

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_host(self, size: int) -> Bytes:
        address = int(self._call("cudaMallocHost", size))
        pinned: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return pinned

    def free_host(self, host: Bytes) -> None:
        self._call("cudaFreeHost", host.ctypes.data)

    def create_stream(self) -> int:
        return int(self._call("cudaStreamCreate"))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def copy_to_device(self, address: int, host: Bytes, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, kind, stream)

    def copy_to_host(self, host: Bytes, address: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, address, host.nbytes, kind, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """The one value of a call that gives (status, value), or None of one that gives (status,)."""
        try:
            status, *values = getattr(self._runtime, name)(*arguments)
        except RuntimeError as error:  # how the binding says that the driver's own library is not there
            raise UnavailableError(f"CUDA {name} failed: {error}") from error
        if int(status) != 0:
            raise UnavailableError(f"CUDA {name} failed: {status.name}")
        return values[0] if values else None


class PyCuda:
    """CUDA through pycuda; its objects free themselves, so they are kept here under their addresses."""

    library = "pycuda"

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._allocations: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        try:
            driver.init()
            self._context = driver.Device(0).retain_primary_context() if driver.Device.count() else None
            if self._context is not None:
                self._context.push()
                atexit.register(self._context.pop)  # pycuda aborts a process that ends with a context pushed
        except driver.Error as error:
            raise UnavailableError(f"pycuda found no usable CUDA driver: {error}") from error

    def device_count(self) -> int:
        return int(self._driver.Device.count())

    def device(self) -> Device:
        device = self._driver.Device(0)
        major, minor = device.compute_capability()
        return Device(str(device.name()), f"sm{major}{minor}", int(device.total_memory()))

    def allocate(self, size: int) -> int:
        try:
            allocation = self._driver.mem_alloc(size)
        except self._driver.Error as error:
            raise UnavailableError(f"CUDA has no {size} bytes left on the device: {error}") from error
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._allocations.pop(address).free()

    def allocate_host(self, size: int) -> Bytes:
        host: Bytes = self._driver.pagelocked_empty(size, np.uint8)
        return host

    def free_host(self, host: Bytes) -> None:
        """Nothing to do: the array owns its memory."""

    def create_stream(self) -> int:
        stream = self._driver.Stream()
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]

    def copy_to_device(self, address: int, host: Bytes, stream: int) -> None:
        self._driver.memcpy_htod_async(address, host, self._streams[stream])

    def copy_to_host(self, host: Bytes, address: int, stream: int) -> None:
        self._driver.memcpy_dtoh_async(host, address, self._streams[stream])

    def synchronize(self, stream: int) -> None:
        try:
            self._streams[stream].synchronize()
        except self._driver.Error as error:
            raise UnavailableError(f"CUDA work on the device failed: {error}") from error
