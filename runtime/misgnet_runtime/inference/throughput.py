"""Measures latency and throughput of engines: each in its own process, in alternating rounds.

A worker (see :mod:`misgnet_runtime.inference.throughput_worker`) opens one engine, warms it up, and then times the
number of calls that each request asks for; requests and replies are JSON lines. In one process, the thread pools of two
engines would compete; alternating rounds keep ratios meaningful when the machine's speed drifts.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec
import numpy as np

from misgnet_runtime import errors
from misgnet_runtime.bundle.manifest import EngineEntry, FileEntry, Interface
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.children import environment, python_command
from misgnet_runtime.engines.options import DEFAULT_EXECUTION, ExecutionOptions
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.machine import usable_cores
from misgnet_runtime.storage.schema import Struct

ROUNDS = 5
_SETTLED = 0.02  # relative difference of the medians of both halves that counts as settled
WARM_UP_SECONDS = 10.0


class Workload(Struct, frozen=True, kw_only=True):
    """The workload that a worker process calls repeatedly; sent as the first line of its input."""

    worker: ClassVar[str]  # the module of the process
    batch: int = 1
    threads: int | None = None  # default: all usable cores
    streams: int = 1  # number of threads that call, each again as soon as its call returned
    warm_up: float = WARM_UP_SECONDS  # longest warm-up; then a workload that is not steady is measured anyway

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def precision(self) -> str:
        raise NotImplementedError


class Task(Workload, frozen=True):
    """The workload of timing one engine on golden tiles."""

    worker: ClassVar[str] = "misgnet_runtime.inference.throughput_worker"
    entry: EngineEntry
    root: str  # directory that the entry's paths are relative to
    interface: Interface
    golden: str  # file of the golden tiles, relative to ``root`` or absolute
    files: list[FileEntry] = msgspec.field(default_factory=list)  # of a verified bundle; the worker verifies them again
    manifest_sha256: str | None = None  # of a verified bundle

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def precision(self) -> str:
        return self.entry.precision


def task_of(
    bundle: Bundle,
    entry: EngineEntry,
    execution: ExecutionOptions = DEFAULT_EXECUTION,
    warm_up: float = WARM_UP_SECONDS,
) -> Task:
    """Returns the task for an engine of a verified bundle. The worker fails if it finds other bytes.

    ``execution`` defaults to one stream and batch 1.
    """
    manifest = bundle.manifest
    golden = manifest.file("golden tiles").path
    return Task(
        entry=entry, root=str(bundle.path), interface=manifest.interface, golden=golden, batch=execution.batch or 1,
        threads=execution.threads, streams=execution.streams or 1, warm_up=warm_up,
        files=manifest.files, manifest_sha256=bundle.digest(),
    )  # fmt: skip


class WarmUp(Struct, frozen=True):
    """The warm-up before the first round."""

    # Number of calls.
    calls: int
    # Duration of the warm-up.
    seconds: float
    # Whether the duration of calls settled within 5 %.
    steady: bool
    # Mean of the last calls.
    seconds_per_call: float


class Round(Struct, frozen=True):
    """The duration of some calls."""

    seconds: float  # from the start of the first call to the end of the last one
    milliseconds: list[float]  # of each call


class RailEnergy(Struct, frozen=True):
    """Power and energy of one power rail."""

    # Name of the rail.
    rail: str
    # Mean power.
    watts: float
    # Energy per image pair.
    joules_per_pair: float
    # Whether the rail supplies the whole module.
    total: bool


class Timing(Struct, frozen=True):
    """Latency per call, and throughput. Bundles built by earlier versions have only the fields without a default."""

    # Name of the engine.
    engine: str
    precision: str
    # Image pairs per call.
    batch: int
    # Number of timed calls.
    calls: int
    # Median latency of a call.
    p50_ms: float
    # 90th percentile of the latency.
    p90_ms: float
    # 99th percentile of the latency.
    p99_ms: float
    # Mean of all calls.
    pairs_per_second: float
    # Highest latency.
    max_ms: float | None = None
    # Number of threads that call at the same time.
    streams: int = 1
    # Pairs per second of each round.
    rounds: list[float] = msgspec.field(default_factory=list)
    warm_up: WarmUp | None = None
    # Power and energy of each rail that was measured.
    energy: list[RailEnergy] = msgspec.field(default_factory=list)


@dataclass
class _Measured:
    """The measurements of one workload so far."""

    warm_up: WarmUp
    rounds: list[Round] = field(default_factory=list)


def measure(
    tasks: Sequence[Workload],
    seconds: float = 2.0,
    progress: Progress | None = None,
    *,
    rounds: int = ROUNDS,
    enough_rounds: int | None = None,
    during: Callable[[int], AbstractContextManager[object]] = lambda _: nullcontext(),
    beside: Callable[[float], Workload] | None = None,
) -> list[Timing]:
    """Times all tasks in alternating rounds.

    Args:
        tasks: The workloads.
        seconds: Duration per task, over all rounds.
        progress: Called after each round with the rounds done and their total.
        rounds: Number of rounds.
        enough_rounds: Number of rounds after which the measurement may end early, as soon as every task is
            :func:`settled`; default: never.
        during: Creates the context for a round of the task with the given index.
        beside: Creates a further workload, timed last, from the seconds that a call of the fastest task takes.

    Raises:
        MisgnetError: A worker failed; carries its message.
    """
    with ExitStack() as running:
        workers = [running.enter_context(closing(_Worker(task))) for task in tasks]
        found = [_Measured(worker.warm_up()) for worker in workers]
        if beside:
            call = min(measured.warm_up.seconds_per_call for measured in found)
            workers.append(running.enter_context(closing(_Worker(beside(call)))))
            found.append(_Measured(workers[-1].warm_up()))
        for done in range(1, rounds + 1):
            for index, (worker, measured) in enumerate(zip(workers, found, strict=True)):
                calls = _calls(worker.task, measured.warm_up, seconds / rounds)
                with during(index):
                    measured.rounds.append(worker.run(calls))
            if progress:
                progress(done, rounds)
            if enough_rounds and done >= enough_rounds and all(settled(measured.rounds) for measured in found):
                break
    return [_timing(worker.task, measured) for worker, measured in zip(workers, found, strict=True)]


def settled(rounds: Sequence[Round]) -> bool:
    """Returns whether the median duration of a call is the same in the first and in the last half of ``rounds``.

    Medians within 2 % of each other are the same; of an odd number of rounds, the middle one is in neither half. A
    drift of the machine moves the medians apart, a single slow call does not. The rule knows nothing about other tasks,
    so that stopping by it favours none.
    """
    half = len(rounds) // 2
    if half == 0:
        return False
    first, last = (
        float(np.median(np.concatenate([one.milliseconds for one in part]))) for part in (rounds[:half], rounds[-half:])
    )
    return abs(first - last) <= _SETTLED * min(first, last)


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, task: Workload) -> None:
        self.name = f"{task.name} at batch {task.batch}"
        variables = environment(OPENBLAS_NUM_THREADS=str(task.threads or usable_cores()))  # for NumPy's own products
        # A file, not a pipe: a library that writes many warnings would fill a pipe and block.
        self.messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            python_command(task.worker), stdin=pipe, stdout=pipe, stderr=self.messages, env=variables
        )
        self.task = task

    def warm_up(self) -> WarmUp:
        """Sends the task to the worker and waits until the engine is warm."""
        return msgspec.json.decode(self._ask(msgspec.json.encode(self.task)), type=WarmUp)

    def run(self, calls: int) -> Round:
        return msgspec.json.decode(self._ask(str(calls).encode()), type=Round)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.messages.close()

    def _ask(self, line: bytes) -> bytes:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        reply = self.process.stdout.readline()
        if not reply:
            raise self._failure()
        return reply

    def _failure(self) -> MisgnetError:
        self.process.communicate()
        self.messages.seek(0)
        last = (self.messages.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        kind, _, message = last.removeprefix(f"{errors.__name__}.").partition(": ")
        known = getattr(errors, kind, None) if message else None
        if isinstance(known, type) and issubclass(known, MisgnetError):
            return known(f"the benchmark of {self.name} ended early: {message}")
        return MisgnetError(f"the benchmark of {self.name} ended early: {last}")


def _calls(task: Workload, warm_up: WarmUp, seconds: float) -> int:
    """Returns the number of calls that fit into ``seconds``: equally many per stream, at least two."""
    each = seconds / warm_up.seconds_per_call / task.streams
    return task.streams * max(2, math.ceil(each))


def _timing(task: Workload, measured: _Measured) -> Timing:
    ms = np.concatenate([part.milliseconds for part in measured.rounds])
    p50, p90, p99 = (float(x) for x in np.percentile(ms, (50, 90, 99)))
    return Timing(
        engine=task.name, precision=task.precision, batch=task.batch, calls=len(ms), p50_ms=p50, p90_ms=p90, p99_ms=p99,
        pairs_per_second=task.batch * len(ms) / sum(part.seconds for part in measured.rounds),
        max_ms=float(ms.max()), streams=task.streams, warm_up=measured.warm_up,
        rounds=[task.batch * len(part.milliseconds) / part.seconds for part in measured.rounds],
    )  # fmt: skip
