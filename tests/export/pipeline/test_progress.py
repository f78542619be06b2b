"""Tests overlapping stages: results and log keep the order of the calls; errors and Ctrl-C stop all of them cleanly."""

from __future__ import annotations

import io
import re
import signal
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
from rich.console import Console

from misgnet_export.pipeline import progress
from misgnet_export.pipeline.progress import StageLog
from misgnet_runtime.errors import GateFailed, InputError

_PATIENCE = 20.0  # s; only a broken log makes a test wait that long


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "usable_cores", lambda: 2)


@pytest.fixture
def text() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(text: io.StringIO) -> StageLog:
    return StageLog(Console(file=text, width=200))


def names(log: StageLog) -> list[str]:
    return [name for name, _, _ in log.done]


def staged(name: str, act: Callable[[], object], log: StageLog) -> str:
    with log.stage(name) as stage:
        act()
        stage.finding = f"of {name}"
    return name


def run_until_stopped(started: threading.Event, log: StageLog) -> None:
    with log.stage("long") as stage:
        started.set()
        for step in range(int(_PATIENCE / 0.01)):
            stage.progress(step, 1)
            time.sleep(0.01)
    pytest.fail("the stage was not stopped")


def failing(error: BaseException, after: threading.Event, log: StageLog) -> None:
    with log.stage("failing"):
        assert after.wait(_PATIENCE)
        raise error


def test_calls_run_at_the_same_time_and_are_logged_in_their_order(log: StageLog, text: io.StringIO) -> None:
    both, first_may_end = threading.Barrier(2, timeout=_PATIENCE), threading.Event()

    def slow(log: StageLog) -> str:
        both.wait()
        return staged("first", lambda: first_may_end.wait(_PATIENCE), log)

    def quick(log: StageLog) -> str:
        both.wait()
        found = staged("second", lambda: None, log)
        first_may_end.set()
        return found

    staged("before", lambda: None, log)
    assert log.overlap(slow, quick, partial(staged, "third", lambda: None)) == ["first", "second", "third"]
    assert names(log) == ["before", "first", "second", "third"]
    printed = [line for line in text.getvalue().splitlines() if line]
    assert [line.partition(" (")[0] for line in printed] == [f"done: {name}" for name in names(log)]
    assert printed[1].endswith("of first")


def test_error_stops_the_other_calls_and_is_raised(log: StageLog) -> None:
    started, ran = threading.Event(), []
    error = InputError("damaged")
    with pytest.raises(InputError, match="damaged") as raised:
        log.overlap(partial(run_until_stopped, started), partial(failing, error, started), ran.append)
    assert raised.value is error
    assert not ran and names(log) == []  # the third call waited for a core


def test_first_of_several_errors_is_raised(log: StageLog) -> None:
    both = threading.Barrier(2, timeout=_PATIENCE)

    def fail(error: Exception, log: StageLog) -> None:
        both.wait()
        raise error

    with pytest.raises(GateFailed, match="first"):
        log.overlap(partial(fail, GateFailed("first")), partial(fail, InputError("second")))


def test_interrupt_stops_all_calls_before_it_is_raised(log: StageLog) -> None:
    started, others = threading.Event(), set(threading.enumerate())

    def interrupt(log: StageLog) -> None:
        assert started.wait(_PATIENCE)
        time.sleep(0.5)  # the main thread must wait for the calls first
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        run_until_stopped(threading.Event(), log)

    with pytest.raises(KeyboardInterrupt):
        log.overlap(partial(run_until_stopped, started), interrupt)
    assert not [one for one in set(threading.enumerate()) - others if "Executor" in one.name]
    assert names(log) == []
    staged("after", lambda: None, log)  # the log stays usable
    assert names(log) == ["after"]


def test_stage_that_starts_after_an_error_does_not_run(log: StageLog) -> None:
    failed, ran = threading.Event(), []

    def late(log: StageLog) -> None:
        assert failed.wait(_PATIENCE)
        time.sleep(0.5)  # the error must reach the log first
        staged("late", lambda: ran.append(True), log)

    def fail(log: StageLog) -> None:
        failed.set()
        raise InputError("damaged")

    with pytest.raises(InputError):
        log.overlap(late, fail)
    assert not ran


@pytest.mark.parametrize("width", [60, 80, 120])
def test_count_is_shown_whole_at_any_width(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    log = StageLog(console)
    with log.stage("quantize to INT8 for tensorrt") as stage:
        stage.show_status("estimate the sensitivity of each group of operators on the validation tiles")
        stage.progress(1234, 5678)
        assert log._bars._progress is not None
        log._bars._progress.refresh()
    assert isinstance(console.file, io.StringIO)
    assert " 1234/5678 0:00:00" in console.file.getvalue()


def test_nothing_but_lines_is_written_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=60)
    with StageLog(console).stage("read the tiles") as stage:
        stage.progress(1, 2)
    assert isinstance(console.file, io.StringIO)
    assert re.fullmatch(r"done: read the tiles \(\d+\.\d s\)\n", console.file.getvalue())
