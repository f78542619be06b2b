"""Implements the CUDA driver interface with cuda-python's binding of the runtime API."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from misgnet_runtime.engines.cuda.driver import Bytes, CudaGraphs, Device, version_text
from misgnet_runtime.errors import UnavailableError


class CudaPython:
    """A CudaDriver over cuda-python, whose calls return a tuple that starts with a status."""

    library = "cuda-python"

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.graphs: CudaGraphs | None = _Graphs(self, runtime)
        self.device_count()  # raises UnavailableError if there is no driver

    @contextmanager
    def current(self) -> Iterator[None]:
        """Selects device 0, then restores the previous device: other code in this thread may use another one."""
        before = int(self.call("cudaGetDevice"))
        self.call("cudaSetDevice", 0)
        try:
            yield
        finally:
            if before != 0:
                self.call("cudaSetDevice", before)

    def device_count(self) -> int:
        return int(self.call("cudaGetDeviceCount"))

    def device(self) -> Device:
        found = self.call("cudaGetDeviceProperties", 0)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        capability = f"sm{found.major}{found.minor}"
        return Device(name.rstrip("\0"), capability, int(found.totalGlobalMem), bool(found.integrated))

    def version(self) -> str:
        return version_text(int(self.call("cudaDriverGetVersion")))

    def free_memory(self) -> int:
        with self.current():
            return int(self.call("cudaMemGetInfo"))  # the first of (free, total)

    def allocate(self, size: int) -> int:
        return int(self.call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self.call("cudaFree", address)

    def allocate_host(self, size: int) -> Bytes:
        address = int(self.call("cudaMallocHost", size))
        pinned: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return pinned

    def free_host(self, host: Bytes) -> None:
        self.call("cudaFreeHost", host.ctypes.data)

    def create_stream(self) -> int:
        return int(self.call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self.call("cudaStreamDestroy", stream)

    def copy_to_device(self, address: int, host: Bytes, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, kind, stream)

    def copy_to_host(self, host: Bytes, address: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", host.ctypes.data, address, host.nbytes, kind, stream)

    def synchronize(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", stream)

    def create_event(self, *, blocking: bool = True) -> int:
        flags = self._runtime.cudaEventBlockingSync if blocking else self._runtime.cudaEventDefault
        return int(self.call("cudaEventCreateWithFlags", flags))

    def destroy_event(self, event: int) -> None:
        self.call("cudaEventDestroy", event)

    def record_event(self, event: int, stream: int) -> None:
        self.call("cudaEventRecord", event, stream)

    def wait_for_event(self, stream: int, event: int) -> None:
        self.call("cudaStreamWaitEvent", stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        self.call("cudaEventSynchronize", event)

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self.call("cudaEventElapsedTime", start, end))

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function that returns (status, value, ...) and returns the first value, or None if there is none."""
        try:
            status, *values = getattr(self._runtime, name)(*arguments)
        except RuntimeError as error:  # the binding raises it if the driver's own library is missing
            raise UnavailableError(f"CUDA {name} failed: {error}") from error
        if int(status) != 0:
            raise UnavailableError(f"CUDA {name} failed: {status.name}")
        return values[0] if values else None


class _Graphs:
    """The CudaGraphs of a CudaPython."""

    def __init__(self, driver: CudaPython, runtime: Any) -> None:
        self._call = driver.call
        self._runtime = runtime

    def capture(self, stream: int, queue: Callable[[], None]) -> int:
        # Thread-local: other threads may wait and allocate during the capture.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            queue()
            captured = self._call("cudaStreamEndCapture", stream)
        except BaseException:
            self._abandon(stream)
            raise
        try:
            # Its arguments are equal in CUDA 12 and 13, unlike those of cudaGraphInstantiate.
            return int(self._call("cudaGraphInstantiateWithFlags", captured, 0))
        finally:
            self._call("cudaGraphDestroy", captured)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _abandon(self, stream: int) -> None:
        """Ends a failed capture and clears its error, which CUDA would otherwise return from a later call."""
        status, captured = self._runtime.cudaStreamEndCapture(stream)
        if int(status) == 0:
            self._call("cudaGraphDestroy", captured)
        self._runtime.cudaGetLastError()
