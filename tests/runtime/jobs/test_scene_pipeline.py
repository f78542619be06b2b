"""Three stages at once: order, bounded queues, and one end for all whatever fails."""

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


def test_everything_passes_in_order() -> None:
    written: list[int] = []
    run_pipeline(lambda: (i for i in range(100)), lambda i: i * i, written.append)
    assert written == [i * i for i in range(100)]


def test_workers_work_at_once_and_the_order_stays() -> None:
    """Each item waits until three are in work: fewer workers would never end."""
    together = threading.Barrier(3, timeout=10)
    written: list[int] = []

    def work(item: int) -> int:
        together.wait()
        time.sleep(0.003 * (item % 3 == 0))  # the first of three is the last to be done
        return item

    run_pipeline(lambda: (i for i in range(30)), work, written.append, workers=3)
    assert written == list(range(30))


def test_no_items_are_no_error() -> None:
    run_pipeline(lambda: (i for i in ()), lambda i: i, lambda _: None)


def test_a_slow_stage_bounds_what_waits() -> None:
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
    assert most <= 2 * 2 + 4  # two queues, one item in each stage's hands, and a worker's


def test_stages_overlap() -> None:
    """Each stage waits for the next one to have begun with an earlier item: in turn, that would never end."""
    begun = threading.Event()

    def read() -> Generator[int, None, None]:
        yield 0
        assert begun.wait(10)
        yield 1

    def write(_: int) -> None:
        begun.set()

    run_pipeline(read, lambda i: i, write)


@pytest.mark.parametrize("stage", ["read", "work", "write"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, MemoryError])
def test_a_failure_ends_all_and_is_raised(stage: str, kind: type[BaseException]) -> None:
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
    """Ends the process with 1 where a thread is left."""
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
def test_an_interruption_while_threads_are_started_leaves_none(number: int) -> None:
    """They would keep the process from its end."""
    in_child(partial(interrupted_at_the_start, number))


def interrupted_again_and_again() -> None:
    """What is read from is closed by the caller, so no interruption may leave the thread that reads."""
    reading, sent = threading.Event(), threading.Event()
    ended = False

    def read() -> Generator[int, None, None]:
        nonlocal ended
        yield 0
        reading.set()
        sent.wait()
        time.sleep(0.5)  # the last one is handled
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


def test_a_second_interruption_waits_for_the_thread_that_reads() -> None:
    in_child(interrupted_again_and_again)
