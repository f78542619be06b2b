"""Runs three stages concurrently: one reading thread, several computing threads, one writing thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

_Read = TypeVar("_Read")
_Done = TypeVar("_Done")
_Item = TypeVar("_Item")
_POLL = 0.1  # seconds between a waiting stage's checks for the failure of another


class _StoppedError(Exception):
    """Another stage has failed."""


def run_pipeline(
    read: Callable[[], Generator[_Read, None, None]],
    work: Callable[[_Read], _Done],
    write: Callable[[_Done], None],
    workers: int = 1,
    depth: int = 3,
) -> None:
    """Passes each item that ``read`` yields through ``work``, in ``workers`` threads, and to ``write``, in order.

    At most ``depth`` items wait between two stages, besides those being processed. If a stage fails, or this thread
    is interrupted, the others stop after their current item and the first error is raised; no thread is left running.
    """
    stop = Event()
    failures: list[BaseException] = []
    inward, outward = Queue[_Read | None](depth), Queue[Future[_Done] | None](depth + workers)
    pool = ThreadPoolExecutor(workers, "misgnet-work")
    stages = [
        _Stage("misgnet-read", lambda: _feed(read, inward, stop), stop, failures),
        _Stage("misgnet-write", lambda: _drain(write, outward, stop), stop, failures),
    ]
    try:
        for stage in stages:  # within ``try``: an interruption may come between the two starts
            stage.start()
        with suppress(_StoppedError):
            while (item := _get(inward, stop)) is not None:
                _put(outward, pool.submit(work, item), stop)
            _put(outward, None, stop)
    except BaseException:
        stop.set()
        raise
    finally:
        _wait(stages)
        pool.shutdown(cancel_futures=True)
    if failures:
        raise failures[0]


class _Stage(Thread):
    def __init__(self, name: str, body: Callable[[], None], stop: Event, failures: list[BaseException]) -> None:
        super().__init__(name=name)
        self._body, self._stop_all, self._failures = body, stop, failures
        self.finished = Event()

    def run(self) -> None:
        try:
            with suppress(_StoppedError):
                self._body()
        except BaseException as error:
            self._failures.append(error)
            self._stop_all.set()
        finally:
            self.finished.set()


def _wait(stages: list[_Stage]) -> None:
    """Waits until all stages finished, even if interrupted again: the caller closes the files that they read.

    Before Python 3.13 an interrupted ``join`` marks the thread as finished, so this waits for an event first.
    """
    interruption: KeyboardInterrupt | None = None
    started = [stage for stage in stages if stage.ident is not None]
    while True:
        try:
            for stage in started:
                stage.finished.wait()
            for stage in started:
                stage.join()
            break
        except KeyboardInterrupt as error:
            interruption = error
    if interruption:
        raise interruption


def _feed(read: Callable[[], Generator[_Read, None, None]], queue: Queue[_Read | None], stop: Event) -> None:
    with closing(read()) as items:
        for item in items:
            _put(queue, item, stop)
    _put(queue, None, stop)


def _drain(write: Callable[[_Done], None], queue: Queue[Future[_Done] | None], stop: Event) -> None:
    while (item := _get(queue, stop)) is not None:
        write(item.result())


def _put(queue: Queue[_Item | None], item: _Item | None, stop: Event) -> None:
    while not stop.is_set():
        with suppress(Full):
            return queue.put(item, timeout=_POLL)
    raise _StoppedError


def _get(queue: Queue[_Item | None], stop: Event) -> _Item | None:
    while not stop.is_set():
        with suppress(Empty):
            return queue.get(timeout=_POLL)
    raise _StoppedError
