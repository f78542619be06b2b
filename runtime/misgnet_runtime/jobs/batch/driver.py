"""Assigns scenes to workers and records the outcome of each scene."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.formatting import now, plural
from misgnet_runtime.jobs.batch.pool import Died, Event, Finished, Pool, Ready, Unusable
from misgnet_runtime.jobs.batch.record import Done, End, Failed, Record, Returned, SceneStarted
from misgnet_runtime.jobs.batch.row import is_yes
from misgnet_runtime.jobs.batch.worker import Outcome, Task, discard_work
from misgnet_runtime.log import EventLog
from misgnet_runtime.storage.atomic import refuse_existing

_MAX_STARTS = 3  # consecutive starts of a worker that dies before it is ready


@dataclass(frozen=True)
class Listener:
    """Receives the events of a run."""

    # Messages about the run, or about a scene (field ``scene``: its id).
    log: EventLog
    # Called with the outcome of each scene.
    ended: Callable[[End], None]
    # Called with the number of finished scenes and the total.
    progress: Progress | None = None


class Driver:
    """Runs ``tasks`` once; retries a task up to ``retries`` times if its worker dies or may have caused the failure.

    If no worker is ready after ``ready_seconds``, that is logged.
    """

    def __init__(
        self, tasks: Sequence[Task], output: Path, pool: Pool, record: Record, *, retries: int, listener: Listener,
        ready_seconds: float = 30.0,
    ) -> None:  # fmt: skip
        self._ready_seconds = ready_seconds
        self._output, self._pool, self._record = output, pool, record
        self._max_retries, self._listener = retries, listener
        # Scenes that an earlier run started and did not finish come last: they may crash this run as well.
        self._queue = deque(sorted(tasks, key=lambda task: record.attempts[task.scene.id]))
        self._total, self._done = len(tasks), 0
        self._busy: dict[int, Task] = {}
        self._idle: deque[int] = deque()
        self._workers: dict[int, str] = {}
        self._deaths: Counter[int] = Counter()  # by slot: consecutive deaths before the worker was ready
        self._unusable: dict[int, str] = {}

    def run(self) -> None:
        """Processes tasks until every scene has finished or failed.

        After a KeyboardInterrupt or an error, scenes in progress count as not attempted.

        Raises:
            UnavailableError: No worker can be started.
            StorageError: The record cannot be written.
        """
        self._fail_invalid()
        slots = range(min(self._pool.size, len(self._queue)))
        try:
            for slot in slots:
                self._pool.start(slot)
            deadline = time.monotonic() + self._ready_seconds
            while self._queue or self._busy:
                for event in self._pool.wait():
                    self._handle(event)
                if len(self._unusable) == len(slots):
                    reasons = "; ".join(dict.fromkeys(self._unusable.values()))
                    raise UnavailableError(f"no worker can be started: {reasons}")
                if not self._workers and time.monotonic() > deadline:
                    self._listener.log.info(
                        "no worker is ready yet: the bundle is slow to open, or the cluster has no free resources"
                    )
                    deadline = math.inf
        finally:
            self._pool.close()
            for task in self._busy.values():
                self._record.add(Returned(now(), task.scene.id))

    def _fail_invalid(self) -> None:
        """Fails the tasks that are invalid before any worker sees them."""
        valid = deque[Task]()
        for task in self._queue:
            if message := self._problem(task):
                self._fail(task, message)
            else:
                valid.append(task)
        self._queue = valid

    def _problem(self, task: Task) -> str | None:
        attempts = self._record.attempts[task.scene.id]
        try:
            task.scene.options()
            force = is_yes(task.scene.words, "force")
            for name in task.scene.outputs().values():
                refuse_existing(self._output / name, force or name in self._record.own)
            if is_yes(task.scene.words, "restart"):
                discard_work(self._output, task.scene.id)
        except UsageError as error:
            return str(error)
        if attempts > self._max_retries:
            return (
                f"the run or the worker died in {plural(attempts, 'consecutive attempt')}; provide more memory, or "
                "remove the scene from the table"
            )
        return None

    def _handle(self, event: Event) -> None:
        slot = event.slot
        if isinstance(event, Ready):
            self._deaths[slot] = 0
            self._workers[slot] = event.hello.worker
            self._idle.append(slot)
            self._listener.log.info(f"worker {event.hello.worker}: engine {event.hello.engine}")
        elif isinstance(event, Finished):
            self._handle_outcome(self._busy.pop(slot), slot, event.outcome)
            if event.outcome.restart_worker:
                self._pool.start(slot)
            else:
                self._idle.append(slot)
        elif isinstance(event, Unusable):
            self._give_up_slot(slot, event.reason)
        else:
            self._handle_death(event)
        self._assign()

    def _handle_death(self, event: Died) -> None:
        """Restarts a dead worker, unless workers in its slot repeatedly die before they are ready."""
        task = self._busy.pop(event.slot, None)
        if task is not None:
            self._retry(task, event.reason)
        else:
            self._deaths[event.slot] += 1
        if self._deaths[event.slot] < _MAX_STARTS:
            self._pool.start(event.slot)
        else:
            self._give_up_slot(event.slot, event.reason)

    def _give_up_slot(self, slot: int, reason: str) -> None:
        self._unusable[slot] = reason
        self._listener.log.warning(f"a worker cannot start: {reason}")

    def _assign(self) -> None:
        while self._queue and self._idle:
            slot, task = self._idle.popleft(), self._queue.popleft()
            self._record.add(SceneStarted(now(), task.scene.id, task.key, tuple(task.scene.outputs().values())))
            self._busy[slot] = task
            self._pool.give(slot, task)

    def _handle_outcome(self, task: Task, slot: int, outcome: Outcome) -> None:
        scene = task.scene
        for warning in outcome.warnings:
            self._warn(scene.id, warning)
        if outcome.figures is None:
            (self._retry if outcome.retry else self._fail)(task, outcome.message)
            return
        outputs, attempts = tuple(scene.outputs().values()), self._record.attempts[scene.id]
        worker = self._workers[slot]
        self._end(
            Done(
                time=now(),
                scene=scene.id,
                key=task.key,
                outputs=outputs,
                attempts=attempts,
                worker=worker,
                figures=outcome.figures,
            )
        )

    def _warn(self, scene: str, message: str) -> None:
        self._listener.log.warning(f"{scene}: {message}", scene=scene)

    def _retry(self, task: Task, reason: str) -> None:
        """Queues the task again behind all others, or fails it after the last permitted attempt."""
        attempts = self._record.attempts[task.scene.id]
        if attempts > self._max_retries:
            self._fail(task, f"{reason}; gave up after {plural(attempts, 'attempt')}")
        else:
            self._warn(task.scene.id, f"{reason}; it will be retried")
            self._queue.append(task)

    def _fail(self, task: Task, message: str) -> None:
        message = " ".join(message.split())
        self._end(Failed(now(), task.scene.id, self._record.attempts[task.scene.id], message))

    def _end(self, end: End) -> None:
        self._record.add(end)
        discard_work(self._output, end.scene)
        self._done += 1
        self._listener.ended(end)
        if self._listener.progress:
            self._listener.progress(self._done, self._total)
