"""Workers as processes of this machine: one that is killed takes nothing but its own attempt with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any

from misgnet_runtime.batch.pool import Died, Ended, Event, Ready, Unusable
from misgnet_runtime.batch.worker import Hello, Outcome, SceneWorker, Setup, Task
from misgnet_runtime.errors import MisgnetError

_LOOK = 1.0  # seconds of a wait


class ProcessPool:
    """``size`` processes, each begun anew from nothing, since engines do not survive a fork."""

    def __init__(self, setup: Setup, size: int) -> None:
        self.size, self._setup = size, setup
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, tuple[Any, Connection]] = {}

    def start(self, place: int) -> None:
        self._end(place)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._setup), daemon=True)
        process.start()
        theirs.close()
        self._workers[place] = process, ours

    def give(self, place: int, task: Task) -> None:
        with suppress(OSError):  # it died since: its end is heard by the next wait
            self._workers[place][1].send(task)

    def wait(self) -> list[Event]:
        heard = wait([ours for _, ours in self._workers.values()], _LOOK)
        return [self._event(place) for place, (_, ours) in list(self._workers.items()) if ours in heard]

    def close(self) -> None:
        for place in list(self._workers):
            self._end(place)

    def _event(self, place: int) -> Event:
        process, ours = self._workers[place]
        try:
            said = ours.recv()
        except (EOFError, OSError):
            process.join()
            self._end(place)
            return Died(place, _last_words(process.exitcode))
        if isinstance(said, Hello):
            return Ready(place, said)
        return Ended(place, said) if isinstance(said, Outcome) else Unusable(place, str(said))

    def _end(self, place: int) -> None:
        if place in self._workers:
            process, ours = self._workers.pop(place)
            process.kill()
            process.join()
            ours.close()


def _serve(connection: Connection, setup: Setup) -> None:
    """A worker's life: it says that it is ready, or why not, then does what it is given."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_end_with_parent, daemon=True).start()
    worker = SceneWorker(setup)
    try:
        connection.send(worker.start())
    except MisgnetError as error:
        connection.send(str(error))
        return
    with suppress(EOFError):
        while True:
            connection.send(worker.run(connection.recv()))


def _end_with_parent() -> None:
    """Nothing is left behind by a driver that was killed: the next run finds its scenes free."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _last_words(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its worker ended with exit code {code}"
    memory = "; out of memory, maybe" if -code == signal.SIGKILL else ""
    return f"its worker was killed by {signal.Signals(-code).name}{memory}"
