"""Provides fakes of cuda-python and pycuda over a FakeDriver, with the calls that the runtime makes."""
# ruff: noqa: N802, N815 (the names are CUDA's)

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from misgnet_runtime.engines.cuda import Bytes
from misgnet_runtime.errors import UnavailableError
from support.fake_cuda import FakeDriver


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalState = 401
    cudaErrorNotReady = 600
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureWrongThread = 908


class FakeRuntime:
    """cuda-python's runtime: every call returns a tuple that starts with a status, and the last error is kept."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    cudaStreamNonBlocking = 1
    cudaEventDefault = 0
    cudaEventBlockingSync = 1

    def __init__(self, status: Status = Status.cudaSuccess) -> None:
        self.gpu = FakeDriver()
        self.device = 0
        self.last_error = Status.cudaSuccess
        self.status = status

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return self.status, self.device

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        self.device = device
        return (self.status,)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self.status, 1

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return self.status, SimpleNamespace(name=b"Orin\0\0", major=8, minor=7, totalGlobalMem=1 << 33, integrated=1)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return self.status, 12060

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return self.status, self.gpu.free_memory(), 1 << 33

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._value(self.gpu.allocate, size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._done(self.gpu.free, address)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._value(lambda: self.gpu.allocate_host(size).ctypes.data)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._done(self.gpu.free_host, self.gpu.pinned[address])

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        return self._value(self.gpu.create_stream)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return self._done(self.gpu.destroy_stream, stream)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        return self._done(self.gpu.synchronize, stream)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> tuple[Any, ...]:
        if kind == "to device":
            return self._done(self.gpu.copy_to_device, to, self.gpu.pinned[source][:size], stream)
        return self._done(self.gpu.copy_to_host, self.gpu.pinned[to][:size], source, stream)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags in (self.cudaEventDefault, self.cudaEventBlockingSync)
        return self._value(lambda: self.gpu.create_event(blocking=flags == self.cudaEventBlockingSync))

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        return self._done(self.gpu.destroy_event, event)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        return self._done(self.gpu.record_event, event, stream)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        return self._done(self.gpu.wait_for_event, stream, event)

    def cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:
        return self._done(self.gpu.synchronize_event, event)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        return self._value(self.gpu.elapsed_ms, start, end)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[Any, ...]:
        assert mode == "thread", "a capture of all threads would break the work of the others"
        return self._done(self.gpu.begin_capture, stream)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        return self._value(self.gpu.end_capture, stream)

    def cudaGraphInstantiateWithFlags(self, captured: int, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        return self._value(self.gpu.instantiate, captured)

    def cudaGraphDestroy(self, captured: int) -> tuple[Any, ...]:
        return self._done(self.gpu.captured.__delitem__, captured)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        assert self.gpu.graphs
        return self._done(self.gpu.graphs.launch, graph, stream)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        assert self.gpu.graphs
        return self._done(self.gpu.graphs.destroy, graph)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        found, self.last_error = self.last_error, Status.cudaSuccess
        return (found,)

    def _value(self, call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
        try:
            return self.status, call(*arguments)
        except UnavailableError as error:
            name = re.search(r"failed: (\w+)", str(error))
            assert name
            self.last_error = Status[name.group(1)]
            return self.last_error, None

    def _done(self, call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
        return self._value(call, *arguments)[:1]


class FakePyCuda:
    """pycuda's driver: objects that free themselves, exceptions for errors, and a context that is current per thread.

    ``pushed`` counts contexts by thread. ``outside`` lists calls without a current context, where pycuda fails, or only
    warns if the call is in a destructor.
    """

    event_flags = SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1)
    device_attribute = SimpleNamespace(INTEGRATED="integrated")

    class Error(Exception):
        pass

    def __init__(self, failure: str = "") -> None:
        self.gpu = FakeDriver()
        self.gpu.graphs = None
        self.failure = failure
        self.outside: list[str] = []
        self.Device = type("Device", (_Device,), {"library": self})
        self.pushed: Counter[int] = Counter()

    def init(self) -> None:
        if self.failure:
            raise self.Error(self.failure)

    def get_driver_version(self) -> int:
        return 12060

    def mem_get_info(self) -> tuple[int, int]:
        return self.call("cuMemGetInfo", self.gpu.free_memory), 1 << 33

    def mem_alloc(self, size: int) -> Any:
        return _Allocation(self, self.call("cuMemAlloc", self.gpu.allocate, size))

    def pagelocked_empty(self, size: int, dtype: Any) -> Any:
        assert dtype == np.uint8
        return np.asarray(_Pinned(self, self.call("cuMemHostAlloc", self.gpu.allocate_host, size)))

    def Stream(self, flags: int) -> Any:
        assert flags == 1  # CU_STREAM_NON_BLOCKING
        return _Stream(self)

    def Event(self, flags: int) -> Any:
        assert flags in (self.event_flags.DEFAULT, self.event_flags.BLOCKING_SYNC)
        return _Event(self, blocking=flags == self.event_flags.BLOCKING_SYNC)

    def memcpy_htod_async(self, to: int, host: Bytes, stream: Any) -> None:
        self.call("cuMemcpyHtoDAsync", self.gpu.copy_to_device, to, self._own(host), stream.handle)

    def memcpy_dtoh_async(self, host: Bytes, source: int, stream: Any) -> None:
        self.call("cuMemcpyDtoHAsync", self.gpu.copy_to_host, self._own(host), source, stream.handle)

    def call(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        if not self.pushed[threading.get_ident()]:
            self.outside.append(name)
            raise self.Error(f"{name} failed: invalid device context")
        try:
            return work(*arguments)
        except UnavailableError as error:
            raise self.Error(f"{name} failed: {error}") from error

    def _own(self, host: Bytes) -> Bytes:
        return self.gpu.pinned[host.ctypes.data][: host.nbytes]


class _Device:
    library: FakePyCuda

    def __init__(self, index: int) -> None:
        assert index == 0

    @staticmethod
    def count() -> int:
        return 1

    def retain_primary_context(self) -> Any:
        def push(step: int) -> None:
            self.library.pushed[threading.get_ident()] += step

        return SimpleNamespace(push=lambda: push(1), pop=lambda: push(-1))

    def compute_capability(self) -> tuple[int, int]:
        return (8, 7)

    def name(self) -> str:
        return "Orin"

    def get_attribute(self, attribute: str) -> int:
        return {"integrated": 1}[attribute]

    def total_memory(self) -> int:
        return 1 << 33


class _Allocation:
    def __init__(self, library: FakePyCuda, address: int) -> None:
        self.library, self.address = library, address

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.library.call("cuMemFree", self.library.gpu.free, self.address)


class _Pinned:
    """Page-locked memory; it is the base of arrays made from it."""

    def __init__(self, library: FakePyCuda, host: Bytes) -> None:
        self.library, self.host = library, host
        self.__array_interface__ = host.__array_interface__

    def free(self) -> None:
        self.library.call("cuMemFreeHost", self.library.gpu.free_host, self.host)


class _Stream:
    def __init__(self, library: FakePyCuda) -> None:
        self.library = library
        self.handle = library.call("cuStreamCreate", library.gpu.create_stream)

    def synchronize(self) -> None:
        self.library.call("cuStreamSynchronize", self.library.gpu.synchronize, self.handle)

    def wait_for_event(self, event: _Event) -> None:
        self.library.call("cuStreamWaitEvent", self.library.gpu.wait_for_event, self.handle, event.event)

    def __del__(self) -> None:
        self.library.call("cuStreamDestroy", self.library.gpu.destroy_stream, self.handle)


class _Event:
    def __init__(self, library: FakePyCuda, *, blocking: bool) -> None:
        self.library = library
        self.event = library.call("cuEventCreate", lambda: library.gpu.create_event(blocking=blocking))

    def record(self, stream: _Stream) -> None:
        self.library.call("cuEventRecord", self.library.gpu.record_event, self.event, stream.handle)

    def synchronize(self) -> None:
        self.library.call("cuEventSynchronize", self.library.gpu.synchronize_event, self.event)

    def time_till(self, end: _Event) -> float:
        return float(self.library.call("cuEventElapsedTime", self.library.gpu.elapsed_ms, self.event, end.event))

    def __del__(self) -> None:
        self.library.call("cuEventDestroy", self.library.gpu.destroy_event, self.event)
