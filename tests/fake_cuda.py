"""A CUDA driver without CUDA: "device memory" is NumPy, and a stream really is asynchronous.

Whatever is queued on a stream runs only in ``synchronize``, so code that reads a result too early,
or reuses a host array too early, gets wrong numbers here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from misgnet_runtime.cuda import Bytes, Device


class FakeDriver:
    library = "fake"

    def __init__(self, capability: str = "sm87", devices: int = 1, memory: int = 1 << 30) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.memory: dict[int, Bytes] = {}
        self.pinned: dict[int, Bytes] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self._capability = capability
        self._devices = devices
        self._left = memory
        self._next = 0x1000

    def device_count(self) -> int:
        return self._devices

    def device(self) -> Device:
        return Device("Fake GPU", self._capability, 1 << 30)

    def allocate(self, size: int) -> int:
        if size > self._left:
            raise MemoryError(f"{size} bytes asked, {self._left} left")
        self._left -= size
        address = self._handle()
        self.memory[address] = np.full(size, 0xAB, np.uint8)
        return address

    def free(self, address: int) -> None:
        self._left += self.memory.pop(address).nbytes

    def allocate_host(self, size: int) -> Bytes:
        host = np.full(size, 0xCD, np.uint8)
        self.pinned[host.ctypes.data] = host
        return host

    def free_host(self, host: Bytes) -> None:
        del self.pinned[host.ctypes.data]

    def create_stream(self) -> int:
        stream = self._handle()
        self.queues[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
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
        self.calls.append(("synchronize", stream))
        queue, self.queues[stream] = self.queues[stream], []
        for work in queue:
            work()

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        self.queues[stream].append(work)

    def _check(self, address: int, host: Bytes) -> None:
        assert host.dtype == np.uint8
        assert host.ctypes.data in self.pinned, "an asynchronous copy needs pinned host memory"
        assert host.nbytes <= self.memory[address].nbytes

    def _handle(self) -> int:
        self._next += 0x1000
        return self._next
