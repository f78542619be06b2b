"""The contract between the driver and whatever runs its workers: numbered places, tasks given to them, and events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from misgnet_runtime.jobs.batch.worker import Hello, Outcome, Task


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
