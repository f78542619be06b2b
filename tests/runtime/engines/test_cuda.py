"""Tests of the CUDA drivers: one suite for the fake driver, the fakes of both libraries, and this machine's GPU."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest

from misgnet_runtime.engines import cuda
from misgnet_runtime.engines.cuda import Bytes, CudaDriver, CudaGraphs, CudaPython, PyCuda, first_device, open_driver
from misgnet_runtime.engines.cuda.driver import version_text
from misgnet_runtime.errors import UnavailableError
from support import gpu
from support.fake_cuda import FakeDriver
from support.fake_cuda_libraries import FakePyCuda, FakeRuntime, Status

LIBRARIES = ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart", "pycuda", "pycuda.driver")


DRIVERS: dict[str, Callable[[], CudaDriver]] = {
    "fake": FakeDriver,
    "cuda-python": lambda: CudaPython(FakeRuntime()),
    "pycuda": lambda: PyCuda(FakePyCuda()),
    **{f"real {name}": partial(gpu.DRIVERS.__getitem__, name) for name in gpu.DRIVERS},
}


@pytest.mark.skipif(not gpu.DRIVERS, reason=f"the real CUDA was not tested: {'; '.join(gpu.REASONS)}")
def test_the_suite_runs_on_this_machines_gpu() -> None:
    assert len(DRIVERS) > 3


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> CudaDriver:
    return DRIVERS[request.param]()


@pytest.fixture
def graphs(driver: CudaDriver) -> CudaGraphs:
    if driver.graphs is None:
        pytest.skip("pycuda has no graphs")
    return driver.graphs


class Copies:
    """A stream that copies 4 bytes from ``there`` to the device, and from there to ``back``."""

    def __init__(self, driver: CudaDriver, taken: ExitStack) -> None:
        self.driver = driver
        self.stream = driver.create_stream()
        taken.callback(driver.destroy_stream, self.stream)
        self.address = driver.allocate(4)
        taken.callback(driver.free, self.address)
        self.there, self.back = (self.pinned(taken) for _ in range(2))
        self.event = driver.create_event()
        taken.callback(driver.destroy_event, self.event)

    def pinned(self, taken: ExitStack) -> Bytes:
        host = self.driver.allocate_host(4)
        taken.callback(self.driver.free_host, host)
        host[:] = 0
        return host

    def queue(self) -> None:
        self.driver.copy_to_device(self.address, self.there, self.stream)
        self.driver.copy_to_host(self.back, self.address, self.stream)

    def wait(self) -> list[int]:
        self.driver.record_event(self.event, self.stream)
        self.driver.synchronize_event(self.event)
        found: list[int] = self.back.tolist()
        return found


@pytest.fixture
def copies(driver: CudaDriver) -> Any:
    with ExitStack() as taken:
        yield Copies(driver, taken)


def test_bytes_go_to_the_device_and_back(driver: CudaDriver) -> None:
    stream, address = driver.create_stream(), driver.allocate(8)
    there, back = driver.allocate_host(8), driver.allocate_host(8)
    assert there.dtype == np.uint8 and there.shape == (8,)
    there[:] = range(8)
    back[:] = 0
    driver.copy_to_device(address, there[:6], stream)
    driver.copy_to_host(back[:6], address, stream)
    driver.synchronize(stream)
    assert back.tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    for host in (there, back):
        driver.free_host(host)
    driver.free(address)
    driver.destroy_stream(stream)


def test_a_thread_and_another_stream_wait_for_an_event(driver: CudaDriver, copies: Copies) -> None:
    other, first = driver.create_stream(), driver.create_event()
    copies.there[:] = 7
    driver.copy_to_device(copies.address, copies.there, copies.stream)
    driver.record_event(first, copies.stream)
    driver.wait_for_event(other, first)
    driver.copy_to_host(copies.back, copies.address, other)
    driver.record_event(copies.event, other)
    driver.synchronize_event(copies.event)
    assert copies.back.tolist() == [7] * 4
    assert 0 <= driver.elapsed_ms(first, copies.event) < 60_000
    driver.destroy_event(first)
    driver.destroy_stream(other)


def test_waiting_for_an_unrecorded_event_returns_at_once(driver: CudaDriver, copies: Copies) -> None:
    driver.synchronize_event(copies.event)
    driver.wait_for_event(copies.stream, copies.event)
    copies.queue()
    assert copies.wait() == [0] * 4


def test_a_graph_runs_at_each_launch_but_not_when_captured(graphs: CudaGraphs, copies: Copies) -> None:
    copies.there[:] = 1
    graph = graphs.capture(copies.stream, copies.queue)
    assert copies.wait() == [0] * 4
    for value in (2, 3):
        copies.there[:] = value
        graphs.launch(graph, copies.stream)
        assert copies.wait() == [value] * 4
    graphs.destroy(graph)


def test_waiting_or_allocating_breaks_only_the_capture(driver: CudaDriver, graphs: CudaGraphs, copies: Copies) -> None:
    for breaks in (lambda: driver.synchronize(copies.stream), lambda: driver.free(driver.allocate(4))):

        def queue(breaks: Callable[[], None] = breaks) -> None:
            copies.queue()
            breaks()

        with pytest.raises(UnavailableError, match="cudaErrorStreamCapture"):
            graphs.capture(copies.stream, queue)
    copies.there[:] = 5
    copies.queue()
    assert copies.wait() == [5] * 4


def test_an_exception_ends_a_capture(graphs: CudaGraphs, copies: Copies) -> None:
    def queue() -> None:
        copies.queue()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        graphs.capture(copies.stream, queue)
    assert copies.wait() == [0] * 4
    copies.there[:] = 6
    graph = graphs.capture(copies.stream, copies.queue)
    graphs.launch(graph, copies.stream)
    assert copies.wait() == [6] * 4
    graphs.destroy(graph)


def test_other_threads_wait_and_allocate_while_one_captures(
    driver: CudaDriver, graphs: CudaGraphs, copies: Copies
) -> None:
    with ExitStack() as taken, ThreadPoolExecutor(1) as pool:

        def elsewhere() -> list[int]:
            others = Copies(driver, taken)
            others.there[:] = 9
            others.queue()
            return others.wait()

        def queue() -> None:
            copies.queue()
            assert pool.submit(elsewhere).result() == [9] * 4

        graphs.destroy(graphs.capture(copies.stream, queue))


def test_threads_use_separate_streams(driver: CudaDriver) -> None:
    def work(value: int) -> list[int]:
        with ExitStack() as taken:
            copies = Copies(driver, taken)
            copies.there[:] = value
            copies.queue()
            return copies.wait()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(12))) == [[value] * 4 for value in range(12)]


def test_too_little_memory_is_reported(driver: CudaDriver) -> None:
    with pytest.raises(UnavailableError, match=r"(?i)memory"):
        driver.allocate(1 << 50)


@pytest.mark.parametrize("name", ["cuda-python", "pycuda"])
def test_the_device_is_described(name: str) -> None:
    assert first_device(DRIVERS[name]()) == cuda.Device("Orin", "sm87", 1 << 33, integrated=True)


def test_the_driver_reports_its_version_and_free_memory(driver: CudaDriver) -> None:
    assert re.fullmatch(r"\d+\.\d", driver.version())
    free = driver.free_memory()
    address = driver.allocate(1 << 24)
    assert 0 < driver.free_memory() < free <= driver.device().memory_bytes
    driver.free(address)


def test_cudas_version_numbers_are_formatted() -> None:
    assert [version_text(number) for number in (11080, 12060, 13000)] == ["11.8", "12.6", "13.0"]


def test_a_broken_capture_clears_cudas_last_error() -> None:
    """TensorRT checks CUDA's last error after it queued its own work."""
    runtime = FakeRuntime()
    driver = CudaPython(runtime)
    assert driver.graphs
    with ExitStack() as taken:
        copies = Copies(driver, taken)
        with pytest.raises(UnavailableError, match="cudaErrorStreamCaptureUnsupported"):
            driver.graphs.capture(copies.stream, lambda: driver.synchronize(copies.stream))
        assert runtime.last_error == Status.cudaSuccess
        graph = driver.graphs.capture(copies.stream, copies.queue)
        assert not runtime.gpu.captured, "captured work is freed once it is a graph"
        driver.graphs.destroy(graph)
    assert runtime.gpu.empty


def test_pycudas_context_is_current_only_while_it_is_used() -> None:
    """pycuda aborts the process if a thread ends with a current context."""
    library = FakePyCuda()
    driver = PyCuda(library)
    with ExitStack() as taken, ThreadPoolExecutor(1) as pool:
        copies = Copies(driver, taken)
        assert pool.submit(copies.queue).result() is None
        assert copies.wait() == [0] * 4
        with pytest.raises(UnavailableError):
            driver.allocate(1 << 50)
        with driver.current():
            assert library.pushed.total() == 1, "TensorRT's calls use it, too"
    assert library.gpu.empty and not library.outside and not library.pushed.total()


def test_the_threads_previous_device_is_restored() -> None:
    runtime = FakeRuntime()
    driver = CudaPython(runtime)
    runtime.device = 1
    with driver.current():
        assert runtime.device == 0
    assert runtime.device == 1


def test_a_missing_driver_is_reported_with_its_error() -> None:
    with pytest.raises(UnavailableError, match="cudaGetDeviceCount failed: cudaErrorNoDevice"):
        CudaPython(FakeRuntime(Status.cudaErrorNoDevice))
    with pytest.raises(UnavailableError, match="pycuda found no usable CUDA driver: no CUDA-capable device"):
        PyCuda(FakePyCuda("no CUDA-capable device"))


def test_if_no_library_is_installed_the_error_has_the_install_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match=r"cuda-python: .*pycuda: .*pip install cuda-python.*\[pycuda\]"):
        open_driver()


@pytest.mark.parametrize(
    ("installed", "library", "expected"),
    [
        ("cuda.bindings.runtime", FakeRuntime(), "cuda-python"),
        ("cuda.cudart", FakeRuntime(), "cuda-python"),
        ("pycuda.driver", FakePyCuda(), "pycuda"),
    ],
)
def test_the_installed_library_is_opened(
    monkeypatch: pytest.MonkeyPatch, installed: str, library: Any, expected: str
) -> None:
    install(monkeypatch, {installed: library})
    assert open_driver().library == expected


def install(monkeypatch: pytest.MonkeyPatch, libraries: dict[str, Any]) -> None:
    def find(name: str) -> Any:
        if name in libraries:
            return libraries[name]
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", find)


TOO_OLD = Status.cudaErrorInsufficientDriver


def test_pycuda_is_opened_if_cuda_python_finds_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on JetPack 6 with cuda-python 12.9, whose CUDA runtime is newer than the driver."""
    install(monkeypatch, {"cuda.bindings.runtime": FakeRuntime(TOO_OLD), "pycuda.driver": FakePyCuda()})
    assert open_driver().library == "pycuda"


@pytest.mark.parametrize(
    ("pycuda", "reason"),
    [
        ({"pycuda.driver": FakePyCuda("no CUDA-capable device is detected")}, "no CUDA-capable device is detected"),
        ({}, "No module named 'pycuda.driver'"),
    ],
)
def test_if_no_library_finds_a_driver_the_error_has_all_reasons_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, pycuda: dict[str, Any], reason: str
) -> None:
    install(monkeypatch, {"cuda.bindings.runtime": FakeRuntime(TOO_OLD), **pycuda})
    with pytest.raises(UnavailableError) as caught:
        open_driver()
    message = str(caught.value)
    assert message.startswith("no CUDA driver can be used (cuda-python: CUDA cudaGetDeviceCount failed: ")
    assert "cudaErrorInsufficientDriver; pycuda: " in message and reason in message
    assert "install or update the NVIDIA driver" in message and "'cuda-python>=12.6.1,<12.9'" in message


def test_if_only_pycuda_is_installed_and_finds_nothing_both_reasons_are_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"pycuda.driver": FakePyCuda("no CUDA-capable device is detected")})
    with pytest.raises(UnavailableError, match=r"cuda-python: No module .*; pycuda: .*no CUDA-capable device"):
        open_driver()


@pytest.mark.parametrize(
    ("open_library", "kind"), [(lambda gpu: gpu, FakeDriver), (CudaPython, FakeRuntime), (PyCuda, FakePyCuda)]
)
@pytest.mark.parametrize(("blocking", "wait"), [(True, "sleeps"), (False, "spins")])
def test_threads_that_wait_for_an_event_sleep_or_spin(
    open_library: Callable[[Any], CudaDriver], kind: Callable[[], Any], blocking: bool, wait: str
) -> None:
    library = kind()
    fake: FakeDriver = getattr(library, "gpu", library)
    driver = open_library(library)
    event = driver.create_event(blocking=blocking)
    assert fake.calls == [("create_event", wait)]
    driver.destroy_event(event)
    assert fake.empty
