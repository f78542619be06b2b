"""Tests the three-stage pipeline: order, bounded queues, and termination of all stages after any failure."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from functools import partial

import pytest

from misgnet_runtime.jobs.scene.pipeline import run_pipeline
from support.ends import in_child


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_items_pass_in_order() -> None:
    written: list[int] = []
    run_pipeline(lambda: (i for i in range(100)), lambda i: i * i, written.append)
    assert written == [i * i for i in range(100)]


def test_workers_run_concurrently_and_keep_the_order() -> None:
    """Each item waits until three are being processed: with fewer workers the test would never end."""
    together = threading.Barrier(3, timeout=10)
    written: list[int] = []

    def work(item: int) -> int:
        together.wait()
        time.sleep(0.003 * (item % 3 == 0))  # the first of three items finishes last
        return item

    run_pipeline(lambda: (i for i in range(30)), work, written.append, workers=3)
    assert written == list(range(30))


def test_an_empty_input_is_accepted() -> None:
    run_pipeline(lambda: (i for i in ()), lambda i: i, lambda _: None)


def test_a_slow_stage_bounds_the_queues() -> None:
    alive, most = 0, 0

    def read() -> Generator[int, None, None]:
        nonlocal alive, most
        for i in range(30):
            alive += 1
            most = max(most, alive)
            yield i

    def write(_: int) -> None:
        nonlocal alive
        time.sleep(0.002)
        alive -= 1

    run_pipeline(read, lambda i: i, write, depth=2)
    assert most <= 2 * 2 + 4  # two queues, one item in each stage, and one per worker


def test_stages_overlap() -> None:
    """Each stage waits until the next one has started an earlier item: stages that run in turn would never end."""
    started = threading.Event()

    def read() -> Generator[int, None, None]:
        yield 0
        assert started.wait(10)
        yield 1

    def write(_: int) -> None:
        started.set()

    run_pipeline(read, lambda i: i, write)


@pytest.mark.parametrize("stage", ["read", "work", "write"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, MemoryError])
def test_a_failure_stops_all_stages_and_is_raised(stage: str, kind: type[BaseException]) -> None:
    written: list[int] = []
    closed = threading.Event()

    def fail_at(here: str, item: int) -> int:
        if stage == here and item == 3:
            raise kind("three")
        return item

    def read() -> Generator[int, None, None]:
        try:
            for i in range(1000):
                yield fail_at("read", i)
        finally:
            closed.set()

    with pytest.raises(kind, match="three"):
        run_pipeline(read, lambda i: fail_at("work", i), lambda i: written.append(fail_at("write", i)))
    assert written == list(range(len(written))) and len(written) <= 3
    assert closed.is_set()


def interrupted_at_the_start(number: int) -> None:
    """Exits with 1 if a thread is left."""
    real = threading.Thread.start
    started = []

    def start(thread: threading.Thread) -> None:
        real(thread)
        started.append(thread)
        if len(started) == number:
            raise KeyboardInterrupt

    threading.Thread.start = start  # type: ignore[method-assign]
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(lambda: (i for i in range(1000)), lambda i: i, lambda _: None)
    assert threading.active_count() == before


@pytest.mark.parametrize("number", [1, 2])
def test_an_interruption_while_threads_start_leaves_no_thread(number: int) -> None:
    """Such a thread would keep the process alive."""
    in_child(partial(interrupted_at_the_start, number))


def interrupted_again_and_again() -> None:
    """The caller closes the files that the reading thread uses, so no interruption may leave it running."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started in the background ignores it
    reading, sent = threading.Event(), threading.Event()
    ended = False

    def read() -> Generator[int, None, None]:
        nonlocal ended
        yield 0
        reading.set()
        sent.wait()
        time.sleep(0.5)  # the last interruption is handled
        ended = True

    def interrupt() -> None:
        reading.wait()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        sent.set()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(read, lambda i: i, lambda _: None)
    assert ended


def test_a_second_interruption_waits_for_the_reading_thread() -> None:
    in_child(interrupted_again_and_again)
