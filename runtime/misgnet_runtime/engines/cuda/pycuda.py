"""Implements the CUDA driver interface with pycuda, which has no CUDA graphs (checked up to 2026.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from misgnet_runtime.engines.cuda.driver import Bytes, CudaGraphs, Device, version_text
from misgnet_runtime.errors import UnavailableError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which pycuda does not export


class PyCuda:
    """A CudaDriver over pycuda. Its objects free themselves, so they are kept here by handle."""

    library = "pycuda"
    graphs: CudaGraphs | None = None

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._allocations: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._events: dict[int, Any] = {}
        try:
            driver.init()
            self._context = driver.Device(0).retain_primary_context() if driver.Device.count() else None
        except driver.Error as error:
            raise UnavailableError(f"pycuda found no usable CUDA driver: {error}") from error

    @contextmanager
    def current(self) -> Iterator[Any]:
        """Yields the driver module with the device's context current in the calling thread.

        The context is popped afterwards: pycuda aborts the process if a thread ends with a current context.
        """
        assert self._context is not None  # first_device was called before, and raises if there is no device
        self._context.push()
        try:
            yield self._driver
        except self._driver.Error as error:
            raise UnavailableError(f"CUDA through pycuda failed: {error}") from error
        finally:
            self._context.pop()

    def device_count(self) -> int:
        return int(self._driver.Device.count())

    def device(self) -> Device:
        device = self._driver.Device(0)
        major, minor = device.compute_capability()
        integrated = bool(device.get_attribute(self._driver.device_attribute.INTEGRATED))
        return Device(str(device.name()), f"sm{major}{minor}", int(device.total_memory()), integrated)

    def version(self) -> str:
        return version_text(int(self._driver.get_driver_version()))

    def free_memory(self) -> int:
        with self.current() as driver:
            return int(driver.mem_get_info()[0])

    def allocate(self, size: int) -> int:
        with self.current() as driver:
            allocation = driver.mem_alloc(size)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        with self.current():
            self._allocations.pop(address).free()

    def allocate_host(self, size: int) -> Bytes:
        with self.current() as driver:
            host: Bytes = driver.pagelocked_empty(size, np.uint8)
        return host

    def free_host(self, host: Bytes) -> None:
        allocation: Any = host.base  # pycuda's object; the array is a view of it
        with self.current():
            allocation.free()

    def create_stream(self) -> int:
        with self.current() as driver:
            stream = driver.Stream(_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        with self.current():
            del self._streams[stream]

    def copy_to_device(self, address: int, host: Bytes, stream: int) -> None:
        with self.current() as driver:
            driver.memcpy_htod_async(address, host, self._streams[stream])

    def copy_to_host(self, host: Bytes, address: int, stream: int) -> None:
        with self.current() as driver:
            driver.memcpy_dtoh_async(host, address, self._streams[stream])

    def synchronize(self, stream: int) -> None:
        with self.current():
            self._streams[stream].synchronize()

    def create_event(self, *, blocking: bool = True) -> int:
        with self.current() as driver:
            event = driver.Event(driver.event_flags.BLOCKING_SYNC if blocking else driver.event_flags.DEFAULT)
        self._events[id(event)] = event  # pycuda has no handles for events
        return id(event)

    def destroy_event(self, event: int) -> None:
        with self.current():
            del self._events[event]

    def record_event(self, event: int, stream: int) -> None:
        with self.current():
            self._events[event].record(self._streams[stream])

    def wait_for_event(self, stream: int, event: int) -> None:
        with self.current():
            self._streams[stream].wait_for_event(self._events[event])

    def synchronize_event(self, event: int) -> None:
        with self.current():
            self._events[event].synchronize()

    def elapsed_ms(self, start: int, end: int) -> float:
        with self.current():
            return float(self._events[start].time_till(self._events[end]))
