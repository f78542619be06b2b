"""Deals scenes out to workers, and keeps the record of what becomes of them."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.formatting import now
from misgnet_runtime.jobs.batch.pool import Died, Ended, Event, Pool, Ready, Unusable
from misgnet_runtime.jobs.batch.record import Begun, Done, End, Failed, Record, Returned
from misgnet_runtime.jobs.batch.row import is_yes
from misgnet_runtime.jobs.batch.worker import Outcome, Task, discard_work
from misgnet_runtime.log import EventLog
from misgnet_runtime.storage.atomic import refuse_existing

_MOST_STARTS = 3  # of a worker in a row that dies before it is ready
_PATIENCE = 30.0  # seconds without any worker until that is told


@dataclass(frozen=True)
class Listener:
    """Who listens: what concerns the run or a scene (``scene``: its id) goes to ``log``, each end to ``ended``, and how
    many scenes have ended to ``progress``.
    """

    log: EventLog
    ended: Callable[[End], None]
    progress: Progress | None = None


class Driver:
    """One run over ``tasks``: each is tried ``retries`` times again where its worker dies or may have been at fault."""

    def __init__(
        self, tasks: Sequence[Task], output: Path, pool: Pool, record: Record, *, retries: int, listener: Listener
    ) -> None:
        self._output, self._pool, self._record = output, pool, record
        self._retries, self._listener = retries, listener
        # Last what was begun before and has no end: it may end this run as well.
        self._queue = deque(sorted(tasks, key=lambda task: record.begun[task.scene.id]))
        self._total, self._done = len(tasks), 0
        self._busy: dict[int, Task] = {}
        self._idle: deque[int] = deque()
        self._workers: dict[int, str] = {}
        self._deaths: Counter[int] = Counter()  # in a row, before it was ready
        self._lost: dict[int, str] = {}

    def run(self) -> None:
        """Until every scene has ended; those that a KeyboardInterrupt or an error leaves count as not tried.

        Raises UnavailableError where no worker can be had, StorageError where the record cannot be written.
        """
        self._refuse()
        places = range(min(self._pool.size, len(self._queue)))
        try:
            for place in places:
                self._pool.start(place)
            patience = time.monotonic() + _PATIENCE
            while self._queue or self._busy:
                for event in self._pool.wait():
                    self._take(event)
                if len(self._lost) == len(places):
                    raise UnavailableError(f"no worker can be had: {'; '.join(dict.fromkeys(self._lost.values()))}")
                if not self._workers and time.monotonic() > patience:
                    self._listener.log.info(
                        "no worker is ready yet: the bundle opens slowly, or the cluster has no room"
                    )
                    patience = math.inf
        finally:
            self._pool.close()
            for task in self._busy.values():
                self._record.add(Returned(now(), task.scene.id))

    def _refuse(self) -> None:
        """Fail what needs no worker for it."""
        fitting = deque[Task]()
        for task in self._queue:
            if message := self._objection(task):
                self._fail(task, message)
            else:
                fitting.append(task)
        self._queue = fitting

    def _objection(self, task: Task) -> str | None:
        begun = self._record.begun[task.scene.id]
        try:
            task.scene.options()
            force = is_yes(task.scene.words, "force")
            for name in task.scene.outputs().values():
                refuse_existing(self._output / name, force or name in self._record.own)
            if is_yes(task.scene.words, "restart"):
                discard_work(self._output, task.scene.id)
        except UsageError as error:
            return str(error)
        if begun > self._retries:
            return f"{begun} runs or workers in a row died while they did it; give it more memory, or leave it out"
        return None

    def _take(self, event: Event) -> None:
        place = event.place
        if isinstance(event, Ready):
            self._deaths[place] = 0
            self._workers[place] = event.hello.place
            self._idle.append(place)
            self._listener.log.info(f"worker {event.hello.place}: engine {event.hello.engine}")
        elif isinstance(event, Ended):
            self._judge(self._busy.pop(place), place, event.outcome)
            if event.outcome.sick:
                self._pool.start(place)
            else:
                self._idle.append(place)
        elif isinstance(event, Unusable):
            self._lose(place, event.reason)
        else:
            self._bury(event)
        self._deal()

    def _bury(self, event: Died) -> None:
        """Begin another worker in the place of a dead one, unless none ever gets ready there."""
        task = self._busy.pop(event.place, None)
        if task is not None:
            self._try_again(task, event.reason)
        else:
            self._deaths[event.place] += 1
        if self._deaths[event.place] < _MOST_STARTS:
            self._pool.start(event.place)
        else:
            self._lose(event.place, event.reason)

    def _lose(self, place: int, reason: str) -> None:
        self._lost[place] = reason
        self._listener.log.warning(f"a worker cannot begin: {reason}")

    def _deal(self) -> None:
        while self._queue and self._idle:
            place, task = self._idle.popleft(), self._queue.popleft()
            self._record.add(Begun(now(), task.scene.id, task.key, tuple(task.scene.outputs().values())))
            self._busy[place] = task
            self._pool.give(place, task)

    def _judge(self, task: Task, place: int, outcome: Outcome) -> None:
        scene = task.scene
        for warning in outcome.warnings:
            self._warn(scene.id, warning)
        if outcome.figures is None:
            (self._try_again if outcome.again else self._fail)(task, outcome.message)
            return
        outputs, attempts = tuple(scene.outputs().values()), self._record.begun[scene.id]
        worker = self._workers[place]
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

    def _try_again(self, task: Task, reason: str) -> None:
        """Later, when others had their turn; a scene that is never done must end at some time."""
        begun = self._record.begun[task.scene.id]
        if begun > self._retries:
            self._fail(task, f"{reason}; given up after {begun} attempts")
        else:
            self._warn(task.scene.id, f"{reason}; it is tried again")
            self._queue.append(task)

    def _fail(self, task: Task, message: str) -> None:
        message = " ".join(message.split())
        self._end(Failed(now(), task.scene.id, self._record.begun[task.scene.id], message))

    def _end(self, end: End) -> None:
        self._record.add(end)
        discard_work(self._output, end.scene)
        self._done += 1
        self._listener.ended(end)
        if self._listener.progress:
            self._listener.progress(self._done, self._total)
