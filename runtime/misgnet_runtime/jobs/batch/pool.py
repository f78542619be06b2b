"""The contract between the driver and whatever runs its workers (numbered places, tasks given to them, and events), and
workers as processes of this machine: one that is killed takes nothing but its own attempt with it.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Protocol

from misgnet_runtime.children import Child, start
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.jobs.batch.worker import Hello, Outcome, SceneWorker, Setup, Task

_LOOK = 1.0  # seconds of a wait


@dataclass(frozen=True)
class Ready:
    """The worker at ``place`` has its engine open, and takes a task."""

    place: int
    hello: Hello


@dataclass(frozen=True)
class Ended:
    """The worker at ``place`` has ended its task, and takes another one."""

    place: int
    outcome: Outcome


@dataclass(frozen=True)
class Unusable:
    """No worker can open the bundle at ``place``, for a reason that another attempt meets again."""

    place: int
    reason: str


@dataclass(frozen=True)
class Died:
    """The worker at ``place`` is no more, whatever it was doing."""

    place: int
    reason: str


Event = Ready | Ended | Unusable | Died


class Pool(Protocol):
    """Workers at places 0 to ``size`` - 1; where one ends nothing happens until the driver asks for it."""

    size: int

    def start(self, place: int) -> None:
        """Begin a worker, in the place of one that is there: Ready, Unusable or Died follows."""

    def give(self, place: int, task: Task) -> None:
        """Have the ready worker do ``task``: Ended or Died follows."""

    def wait(self) -> list[Event]:
        """What has happened, after a while at most; may be nothing."""

    def close(self) -> None:
        """End all workers where they stand."""


class ProcessPool:
    """``size`` processes, each begun anew from nothing, since engines do not survive a fork."""

    def __init__(self, setup: Setup, size: int) -> None:
        self.size, self._setup = size, setup
        self._workers: dict[int, Child] = {}

    def start(self, place: int) -> None:
        self._end(place)
        self._workers[place] = start(_serve, self._setup)

    def give(self, place: int, task: Task) -> None:
        with suppress(OSError):  # it died since: its end is heard by the next wait
            self._workers[place].connection.send(task)

    def wait(self) -> list[Event]:
        heard = wait([child.connection for child in self._workers.values()], _LOOK)
        return [self._event(place) for place, child in list(self._workers.items()) if child.connection in heard]

    def close(self) -> None:
        for place in list(self._workers):
            self._end(place)

    def _event(self, place: int) -> Event:
        try:
            said = self._workers[place].connection.recv()
        except (EOFError, OSError):
            return Died(place, _last_words(self._workers.pop(place).release()))
        if isinstance(said, Hello):
            return Ready(place, said)
        return Ended(place, said) if isinstance(said, Outcome) else Unusable(place, str(said))

    def _end(self, place: int) -> None:
        if place in self._workers:
            self._workers.pop(place).kill()


def _serve(connection: Connection, setup: Setup) -> None:
    """A worker's life: it says that it is ready, or why not, then does what it is given."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    worker = SceneWorker(setup)
    try:
        connection.send(worker.start())
    except MisgnetError as error:
        connection.send(str(error))
        return
    with suppress(EOFError):
        while True:
            connection.send(worker.run(connection.recv()))


def _last_words(code: int) -> str:
    if code >= 0:
        return f"its worker ended with exit code {code}"
    memory = "; out of memory, maybe" if -code == signal.SIGKILL else ""
    return f"its worker was killed by {signal.Signals(-code).name}{memory}"
