"""Tests of the CUDA driver layer beyond its conformance tests: several streams, threads and graphs at once.

They run on the fake driver, and on this machine's GPU if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from misgnet_runtime.engines.cuda import Bytes, CudaDriver
from support import gpu
from support.fake_cuda import FakeDriver

DRIVERS: dict[str, Callable[[], CudaDriver]] = {
    "fake": FakeDriver,
    **{f"real {name}": partial(gpu.DRIVERS.__getitem__, name) for name in gpu.DRIVERS},
}
SIZE = 4 << 20


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> CudaDriver:
    return DRIVERS[request.param]()


class Copier:
    """Copies pinned memory to the device and back on a stream of its own, directly or as a graph."""

    def __init__(self, driver: CudaDriver, taken: ExitStack, size: int = SIZE) -> None:
        self.driver = driver
        self.stream = driver.create_stream()
        taken.callback(driver.destroy_stream, self.stream)
        self.address = driver.allocate(size)
        taken.callback(driver.free, self.address)
        self.there, self.back = (self._pinned(taken, size) for _ in range(2))

    def _pinned(self, taken: ExitStack, size: int) -> Bytes:
        host = self.driver.allocate_host(size)
        taken.callback(self.driver.free_host, host)
        host[:] = 0
        return host

    def queue(self) -> None:
        self.driver.copy_to_device(self.address, self.there, self.stream)
        self.driver.copy_to_host(self.back, self.address, self.stream)


def test_large_pinned_buffers_cross_on_several_streams_at_once(driver: CudaDriver) -> None:
    with ExitStack() as taken:
        copiers = [Copier(driver, taken) for _ in range(4)]
        for seed, copier in enumerate(copiers):
            copier.there[:] = np.random.default_rng(seed).integers(0, 256, SIZE, np.uint8)
        for copier in copiers:
            copier.queue()
        for copier in copiers:
            driver.synchronize(copier.stream)
            assert np.array_equal(copier.there, copier.back)


def test_threads_capture_and_launch_graphs_of_their_own(driver: CudaDriver) -> None:
    graphs = driver.graphs
    if graphs is None:
        pytest.skip("pycuda has no graphs")

    def work(number: int) -> list[int]:
        with ExitStack() as taken:
            copier = Copier(driver, taken, 64)
            graph = graphs.capture(copier.stream, copier.queue)
            found = []
            for value in range(20):
                copier.there[:] = number + value
                graphs.launch(graph, copier.stream)
                driver.synchronize(copier.stream)
                found += sorted(set(copier.back.tolist()))
            graphs.destroy(graph)
            return found

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(8)))
    assert results == [list(range(number, number + 20)) for number in range(8)]


def test_events_order_a_chain_of_streams(driver: CudaDriver) -> None:
    """Each stream copies on what the stream before it left in the same device memory."""
    with ExitStack() as taken:
        copiers = [Copier(driver, taken, 1 << 16) for _ in range(4)]
        copiers[0].there[:] = 42
        driver.copy_to_device(copiers[0].address, copiers[0].there, copiers[0].stream)
        for before, after in pairwise(copiers):
            event = driver.create_event()
            taken.callback(driver.destroy_event, event)
            driver.copy_to_host(after.there, before.address, before.stream)
            driver.record_event(event, before.stream)
            driver.wait_for_event(after.stream, event)
            driver.copy_to_device(after.address, after.there, after.stream)
        last = copiers[-1]
        driver.copy_to_host(last.back, last.address, last.stream)
        driver.synchronize(last.stream)
        assert set(last.back.tolist()) == {42}
