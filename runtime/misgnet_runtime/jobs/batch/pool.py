"""Defines the worker pool interface used by the driver, and a pool of local processes.

A pool has numbered worker slots, accepts tasks and returns events. A local worker that is killed loses only its own
attempt.
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

_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Ready:
    """The worker in ``slot`` has opened its engine and accepts a task."""

    slot: int
    hello: Hello


@dataclass(frozen=True)
class Finished:
    """The worker in ``slot`` has finished its task and accepts another one."""

    slot: int
    outcome: Outcome


@dataclass(frozen=True)
class Unusable:
    """The worker in ``slot`` cannot open the bundle, for a reason that a retry would not change."""

    slot: int
    reason: str


@dataclass(frozen=True)
class Died:
    """The worker in ``slot`` has died."""

    slot: int
    reason: str


Event = Ready | Finished | Unusable | Died


class Pool(Protocol):
    """Runs workers in slots 0 to ``size`` - 1. Dead workers are restarted only when the driver calls ``start``."""

    size: int

    def start(self, slot: int) -> None:
        """Starts a worker, replacing any worker in the slot; a Ready, Unusable or Died event follows."""

    def give(self, slot: int, task: Task) -> None:
        """Sends ``task`` to the ready worker; a Finished or Died event follows."""

    def wait(self) -> list[Event]:
        """Returns new events; waits for them only for a short time, so the list may be empty."""

    def close(self) -> None:
        """Kills all workers."""


class ProcessPool:
    """A pool of ``size`` spawned processes; they are not forked, because engines do not survive a fork."""

    def __init__(self, setup: Setup, size: int) -> None:
        self.size, self._setup = size, setup
        self._workers: dict[int, Child] = {}

    def start(self, slot: int) -> None:
        self._end(slot)
        self._workers[slot] = start(_serve, self._setup)

    def give(self, slot: int, task: Task) -> None:
        with suppress(OSError):  # it has died since: the next wait returns its Died event
            self._workers[slot].connection.send(task)

    def wait(self) -> list[Event]:
        ready = wait([child.connection for child in self._workers.values()], _WAIT_SECONDS)
        return [self._event(slot) for slot, child in list(self._workers.items()) if child.connection in ready]

    def close(self) -> None:
        for slot in list(self._workers):
            self._end(slot)

    def _event(self, slot: int) -> Event:
        try:
            reply = self._workers[slot].connection.recv()
        except (EOFError, OSError):
            return Died(slot, _death_reason(self._workers.pop(slot).release()))
        if isinstance(reply, Hello):
            return Ready(slot, reply)
        return Finished(slot, reply) if isinstance(reply, Outcome) else Unusable(slot, str(reply))

    def _end(self, slot: int) -> None:
        if slot in self._workers:
            self._workers.pop(slot).kill()


def _serve(connection: Connection, setup: Setup) -> None:
    """Runs a worker process: sends a Hello, or why it could not start, then runs the tasks that it receives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C and kills this process
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


def _death_reason(code: int) -> str:
    if code >= 0:
        return f"its worker exited with code {code}"
    memory = "; possibly out of memory" if -code == signal.SIGKILL else ""
    return f"its worker was killed by {signal.Signals(-code).name}{memory}"
