"""Defines the CUDA interface that engines use, independent of the Python library behind it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Device:
    """Describes a GPU."""

    name: str
    compute_capability: str  # such as "sm86"
    memory_bytes: int
    integrated: bool = False  # shares the processor's memory


def version_text(number: int) -> str:
    """Formats CUDA's version number: 12060 as "12.6"."""
    return f"{number // 1000}.{number % 1000 // 10}"


class CudaGraphs(Protocol):
    """CUDA graphs: work that is captured once and launched any number of times. Handles are integers."""

    def capture(self, stream: int, queue: Callable[[], None]) -> int:
        """Captures the work that ``queue`` queues on ``stream`` as a graph, without running it.

        ``queue`` must only queue work: waiting, allocating or freeing breaks the capture. Raises what ``queue`` raises,
        and UnavailableError if CUDA cannot capture the work. The stream stays usable in all cases.
        """

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy(self, graph: int) -> None: ...


class CudaDriver(Protocol):
    """CUDA on device 0, for any thread.

    Addresses and handles of streams and events are integers, sizes are in bytes, pinned host memory is a NumPy array of
    uint8.

    Copies are queued on a stream: a host array may be reused or read only after ``synchronize``, or after
    ``synchronize_event`` of an event recorded after the copy. A failed call raises UnavailableError with the name of
    the call and of the error.
    """

    library: str
    graphs: CudaGraphs | None  # None: the library does not support them

    def current(self) -> AbstractContextManager[object]:
        """Returns a context in which CUDA calls of other libraries (TensorRT) in this thread use the device, too."""

    def device_count(self) -> int: ...

    def device(self) -> Device: ...

    def version(self) -> str:
        """Returns the newest CUDA version that the driver supports, such as "12.6"."""

    def free_memory(self) -> int:
        """Returns the free device memory in bytes. For an integrated GPU, CUDA does not count reclaimable memory."""

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def allocate_host(self, size: int) -> Bytes: ...

    def free_host(self, host: Bytes) -> None:
        """Frees memory of ``allocate_host``; neither the array nor a view of it may be used afterwards."""

    def create_stream(self) -> int:
        """Creates a stream that does not synchronise with other streams, nor with CUDA's default stream."""

    def destroy_stream(self, stream: int) -> None: ...

    def copy_to_device(self, address: int, host: Bytes, stream: int) -> None: ...

    def copy_to_host(self, host: Bytes, address: int, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None: ...

    def create_event(self, *, blocking: bool = True) -> int:
        """Creates an event; before it is recorded, waiting for it returns at once.

        ``blocking``: threads that wait for it sleep. Otherwise they spin, which takes a core, but returns tens of
        microseconds sooner: waking a thread takes longer than the driver takes to see that the work is done. On a
        Jetson in a low power mode, CUDA may let them sleep all the same (see cudaDeviceScheduleAuto).
        """

    def destroy_event(self, event: int) -> None: ...

    def record_event(self, event: int, stream: int) -> None:
        """Records an event, which completes when all work queued earlier on ``stream`` is done."""

    def wait_for_event(self, stream: int, event: int) -> None:
        """Makes later work on ``stream`` start after ``event``; the call itself does not wait."""

    def synchronize_event(self, event: int) -> None: ...

    def elapsed_ms(self, start: int, end: int) -> float:
        """Returns the milliseconds between two completed events."""
