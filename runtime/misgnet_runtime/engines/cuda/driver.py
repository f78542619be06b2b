"""What an engine needs of CUDA, whichever library gives it."""

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
    """A GPU; ``compute_capability`` is written as "sm86". ``integrated``: it shares the processor's memory."""

    name: str
    compute_capability: str
    memory_bytes: int
    integrated: bool = False


def version_text(number: int) -> str:
    """ "12.6" of CUDA's 12060."""
    return f"{number // 1000}.{number % 1000 // 10}"


class CudaGraphs(Protocol):
    """Work that is queued once and launched any number of times, under integer handles."""

    def capture(self, stream: int, queue: Callable[[], None]) -> int:
        """What ``queue`` queues on ``stream``, as a graph; nothing of it runs now.

        ``queue`` may only queue: whatever waits, allocates or frees breaks the capture. Raises what it raises, and
        UnavailableError where CUDA cannot capture it; the stream is as usable as before in any case.
        """

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy(self, graph: int) -> None: ...


class CudaDriver(Protocol):
    """CUDA's device 0, for any thread.

    Addresses and the handles of streams and events are plain integers, sizes are bytes, pinned host memory
    is a NumPy array of uint8.

    Copies are queued on a stream: a host array may be reused or read only after ``synchronize``, or after
    ``synchronize_event`` of an event that was recorded behind them. A failed call is an UnavailableError with the
    call's and the error's name.
    """

    library: str
    graphs: CudaGraphs | None  # None where the library has none

    def current(self) -> AbstractContextManager[object]:
        """Within, CUDA's calls by others in this thread (TensorRT's) find the device, too."""

    def device_count(self) -> int: ...

    def device(self) -> Device: ...

    def version(self) -> str:
        """Of CUDA, the newest that the driver knows: "12.6"."""

    def free_memory(self) -> int:
        """Of the device, in bytes. Of an integrated one CUDA leaves out what the system would give back on demand."""

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def allocate_host(self, size: int) -> Bytes: ...

    def free_host(self, host: Bytes) -> None:
        """Release what ``allocate_host`` gave; neither it nor a view of it may be touched again."""

    def create_stream(self) -> int:
        """A stream that runs beside all others, also beside CUDA's default stream."""

    def destroy_stream(self, stream: int) -> None: ...

    def copy_to_device(self, address: int, host: Bytes, stream: int) -> None: ...

    def copy_to_host(self, host: Bytes, address: int, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None: ...

    def create_event(self) -> int:
        """An event whose waiting thread sleeps; until it is recorded there is nothing to wait for."""

    def destroy_event(self, event: int) -> None: ...

    def record_event(self, event: int, stream: int) -> None:
        """The event happens when all that was queued on ``stream`` before is done."""

    def wait_for_event(self, stream: int, event: int) -> None:
        """What is queued on ``stream`` from now on starts after ``event``; nothing waits here."""

    def synchronize_event(self, event: int) -> None: ...

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events that happened."""
