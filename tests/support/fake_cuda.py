"""Provides a fake CUDA driver: device memory is NumPy arrays, and streams are asynchronous.

Work queued on a stream runs only when a caller waits for it. Code that reads a result too early, or reuses a host array
too early, therefore gets wrong numbers here, too. Work queued during a capture runs when its graph is launched. Wrong
use raises the same errors as CUDA.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from misgnet_runtime.engines.cuda import Bytes, CudaGraphs, Device
from misgnet_runtime.errors import UnavailableError

Work = Callable[[], None]


@dataclass
class _Capture:
    """A running capture of one thread."""

    thread: int
    work: list[Work] = field(default_factory=list)
    broken: bool = False  # by a call that a capture does not allow


class FakeDriver:
    """A CudaDriver that records its ``calls`` in order."""

    library = "fake"

    def __init__(
        self, capability: str = "sm87", devices: int = 1, memory: int = 1 << 30, *, version: str = "12.6",
        integrated: bool = False,
    ) -> None:  # fmt: skip
        self._version = version
        self._integrated = integrated
        self.graphs: CudaGraphs | None = FakeGraphs(self)
        self.calls: list[tuple[Any, ...]] = []
        self.memory: dict[int, Bytes] = {}
        self.pinned: dict[int, Bytes] = {}
        self.queues: dict[int, list[Work]] = {}
        # By event: the stream that it was recorded on (0: none), and a list for the time at which it completes.
        self.events: dict[int, tuple[int, list[float]]] = {}
        self.captured: dict[int, list[Work]] = {}
        self.executable: dict[int, list[Work]] = {}
        self._captures: dict[int, _Capture] = {}
        self._current: Counter[int] = Counter()
        self._capability = capability
        self._devices = devices
        self._left = memory
        self._handles = itertools.count(0x2000, 0x1000)

    @property
    def empty(self) -> bool:
        """Whether everything was freed."""
        return not (self.memory or self.pinned or self.queues or self.events or self.captured or self.executable)

    @contextmanager
    def current(self) -> Iterator[None]:
        thread = threading.get_ident()
        self._current[thread] += 1
        try:
            yield
        finally:
            self._current[thread] -= 1

    def is_current(self) -> bool:
        """Returns whether calls of other libraries in this thread use the device."""
        return self._current[threading.get_ident()] > 0

    def device_count(self) -> int:
        return self._devices

    def device(self) -> Device:
        return Device("Fake GPU", self._capability, 1 << 30, self._integrated)

    def version(self) -> str:
        return self._version

    def free_memory(self) -> int:
        return self._left

    def allocate(self, size: int) -> int:
        self._not_in_capture("cudaMalloc")
        if size > self._left:
            raise UnavailableError(f"CUDA cudaMalloc failed: cudaErrorMemoryAllocation ({size} of {self._left} bytes)")
        self._left -= size
        address = next(self._handles)
        self.memory[address] = np.full(size, 0xAB, np.uint8)
        return address

    def free(self, address: int) -> None:
        self._not_in_capture("cudaFree")
        self._left += self.memory.pop(address).nbytes

    def allocate_host(self, size: int) -> Bytes:
        self._not_in_capture("cudaMallocHost")
        host = np.full(size, 0xCD, np.uint8)
        self.pinned[host.ctypes.data] = host
        return host

    def free_host(self, host: Bytes) -> None:
        del self.pinned[host.ctypes.data]

    def create_stream(self) -> int:
        stream = next(self._handles)
        self.queues[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        if stream in self._captures:
            raise UnavailableError("CUDA cudaStreamDestroy failed: cudaErrorStreamCaptureUnsupported")
        del self.queues[stream]

    def copy_to_device(self, address: int, host: Bytes, stream: int) -> None:
        self._check(address, host)
        self.enqueue(stream, lambda: np.copyto(self.memory[address][: host.nbytes], host))
        self.calls.append(("copy_to_device", address, host.nbytes))

    def copy_to_host(self, host: Bytes, address: int, stream: int) -> None:
        self._check(address, host)
        self.enqueue(stream, lambda: np.copyto(host, self.memory[address][: host.nbytes]))
        self.calls.append(("copy_to_host", address, host.nbytes))

    def synchronize(self, stream: int) -> None:
        self._not_in_capture("cudaStreamSynchronize")
        self.calls.append(("synchronize", stream))
        self._run(stream)

    def create_event(self, *, blocking: bool = True) -> int:
        event = next(self._handles)
        self.calls.append(("create_event", "sleeps" if blocking else "spins"))
        self.events[event] = (0, [])
        return event

    def destroy_event(self, event: int) -> None:
        del self.events[event]

    def record_event(self, event: int, stream: int) -> None:
        self.calls.append(("record_event", event, stream))
        assert event in self.events and stream not in self._captures, "events within a graph are not implemented"
        happened: list[float] = []
        self.enqueue(stream, lambda: happened.append(time.perf_counter()))
        self.events[event] = (stream, happened)

    def wait_for_event(self, stream: int, event: int) -> None:
        recorded = self.events[event]
        self.enqueue(stream, lambda: self._run_until(*recorded))

    def synchronize_event(self, event: int) -> None:
        self._not_in_capture("cudaEventSynchronize")
        self.calls.append(("synchronize_event", event))
        self._run_until(*self.events[event])

    def elapsed_ms(self, start: int, end: int) -> float:
        (_, first), (_, last) = self.events[start], self.events[end]
        if not (first and last):
            raise UnavailableError("CUDA cudaEventElapsedTime failed: cudaErrorNotReady")
        return 1000 * (last[0] - first[0])

    def enqueue(self, stream: int, work: Work) -> None:
        capture = self._captures.get(stream)
        (self.queues[stream] if capture is None else capture.work).append(work)

    def capturing(self, stream: int) -> bool:
        return stream in self._captures

    def begin_capture(self, stream: int) -> None:
        if stream in self._captures or stream not in self.queues:
            raise UnavailableError("CUDA cudaStreamBeginCapture failed: cudaErrorIllegalState")
        self._captures[stream] = _Capture(threading.get_ident())

    def end_capture(self, stream: int) -> int:
        """Returns the handle of the work queued since ``begin_capture``; it is not executable yet."""
        capture = self._captures.get(stream)
        if capture is None:
            raise UnavailableError("CUDA cudaStreamEndCapture failed: cudaErrorIllegalState")
        if capture.thread != threading.get_ident():
            raise UnavailableError("CUDA cudaStreamEndCapture failed: cudaErrorStreamCaptureWrongThread")
        del self._captures[stream]
        if capture.broken:
            raise UnavailableError("CUDA cudaStreamEndCapture failed: cudaErrorStreamCaptureInvalidated")
        graph = next(self._handles)
        self.captured[graph] = capture.work
        return graph

    def instantiate(self, captured: int) -> int:
        graph = next(self._handles)
        self.executable[graph] = list(self.captured[captured])
        return graph

    def _not_in_capture(self, call: str) -> None:
        """Breaks the captures of the calling thread: ``call`` waits or allocates."""
        own = [capture for capture in list(self._captures.values()) if capture.thread == threading.get_ident()]
        for capture in own:
            capture.broken = True
        if own:
            raise UnavailableError(f"CUDA {call} failed: cudaErrorStreamCaptureUnsupported")

    def _run(self, stream: int) -> None:
        while self.queues[stream]:
            self.queues[stream].pop(0)()

    def _run_until(self, stream: int, happened: list[float]) -> None:
        """Runs the work of a stream up to an event; returns at once if the event was never recorded."""
        while stream and not happened:
            self.queues[stream].pop(0)()

    def _check(self, address: int, host: Bytes) -> None:
        assert host.dtype == np.uint8
        assert host.ctypes.data in self.pinned, "an asynchronous copy needs pinned host memory"
        assert host.nbytes <= self.memory[address].nbytes


class FakeGraphs:
    """The CudaGraphs of a FakeDriver."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver

    def capture(self, stream: int, queue: Work) -> int:
        self.driver.calls.append(("begin_capture", stream))
        self.driver.begin_capture(stream)
        try:
            queue()
        except BaseException:
            with suppress(UnavailableError):
                del self.driver.captured[self.driver.end_capture(stream)]
            self.driver.calls.append(("abandon_capture", stream))
            raise
        captured = self.driver.end_capture(stream)
        self.driver.calls.append(("end_capture", stream))
        graph = self.driver.instantiate(captured)
        del self.driver.captured[captured]
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self.driver.calls.append(("launch", graph, stream))
        for work in self.driver.executable[graph]:
            self.driver.enqueue(stream, work)

    def destroy(self, graph: int) -> None:
        del self.driver.executable[graph]
