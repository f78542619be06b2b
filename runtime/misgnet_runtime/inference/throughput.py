"""Latency and throughput: each engine in a process of its own, all of them measured in alternating rounds.

A worker (see :mod:`misgnet_runtime.inference.throughput_worker`) opens one engine, warms it up and then times as many
calls as it is told, one line of JSON for each request. Two engines in one process would compete with their thread
pools; rounds in turn keep a ratio meaningful when the machine's speed drifts.
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
WARM_UP_SECONDS = 10.0


class Workload(Struct, frozen=True, kw_only=True):
    """What a worker process calls again and again; the first line of its input."""

    worker: ClassVar[str]  # the module of the process
    batch: int = 1
    threads: int | None = None  # all usable cores by default
    streams: int = 1  # so many threads call, each again as soon as it has its result
    warm_up: float = WARM_UP_SECONDS  # after which a workload that is not steady yet is measured nevertheless

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def precision(self) -> str:
        raise NotImplementedError


class Task(Workload, frozen=True):
    """An engine's entry, and the folder its paths start from.

    ``golden``: the tiles' file, by its path in ``root`` or from anywhere. ``files``, ``manifest_sha256``: of a bundle
    that was checked, whose bytes the worker compares again.
    """

    worker: ClassVar[str] = "misgnet_runtime.inference.throughput_worker"
    entry: EngineEntry
    root: str
    interface: Interface
    golden: str
    files: list[FileEntry] = msgspec.field(default_factory=list)
    manifest_sha256: str | None = None

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
    """The task of an engine of a bundle that was checked; the worker opens the same bytes, or fails.

    ``execution``: one stream and batch 1 by default.
    """
    manifest = bundle.manifest
    golden = manifest.file("golden tiles").path
    return Task(
        entry=entry, root=str(bundle.path), interface=manifest.interface, golden=golden, batch=execution.batch or 1,
        threads=execution.threads, streams=execution.streams or 1, warm_up=warm_up,
        files=manifest.files, manifest_sha256=bundle.digest(),
    )  # fmt: skip


class WarmUp(Struct, frozen=True):
    """What came before the first round: how much, and whether the calls' time had settled within 5 %."""

    calls: int
    seconds: float
    steady: bool
    seconds_per_call: float


class Round(Struct, frozen=True):
    """Some calls, from the first one's start to the last one's end, and the milliseconds of each."""

    seconds: float
    milliseconds: list[float]


class RailEnergy(Struct, frozen=True):
    """Mean power of a rail, and its energy for one image pair; ``total``: it carries the whole module."""

    rail: str
    watts: float
    joules_per_pair: float
    total: bool


class Timing(Struct, frozen=True):
    """Latency of one call in milliseconds, and image pairs a second, over ``calls`` calls of ``batch`` pairs.

    ``rounds``: pairs a second of each round. Of bundles that an earlier version built only the first eight are known.
    """

    engine: str
    precision: str
    batch: int
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    pairs_per_second: float
    max_ms: float | None = None
    streams: int = 1
    rounds: list[float] = msgspec.field(default_factory=list)
    warm_up: WarmUp | None = None
    energy: list[RailEnergy] = msgspec.field(default_factory=list)


@dataclass
class _Measured:
    """What is known of one workload so far."""

    warm_up: WarmUp
    rounds: list[Round] = field(default_factory=list)


def measure(
    tasks: Sequence[Workload],
    seconds: float = 2.0,
    progress: Progress | None = None,
    *,
    rounds: int = ROUNDS,
    during: Callable[[int], AbstractContextManager[object]] = lambda _: nullcontext(),
    beside: Callable[[float], Workload] | None = None,
) -> list[Timing]:
    """Time all tasks side by side: ``rounds`` rounds, each about ``seconds`` / ``rounds`` a task.

    Args:
        during: Makes the context of each round of the task with the given index.
        beside: Makes one more workload, which is timed last, of the seconds that a call of the fastest task takes.

    Raises:
        MisgnetError: A worker fails; with its own message.
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
    return [_timing(worker.task, measured) for worker, measured in zip(workers, found, strict=True)]


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, task: Workload) -> None:
        self.name = f"{task.name} at batch {task.batch}"
        variables = environment(OPENBLAS_NUM_THREADS=str(task.threads or usable_cores()))  # of NumPy's own products
        # A file, not a pipe: a library that writes pages of warnings must not fill a pipe and block.
        self.words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            python_command(task.worker), stdin=pipe, stdout=pipe, stderr=self.words, env=variables
        )
        self.task = task

    def warm_up(self) -> WarmUp:
        """Tell the worker its task and wait until the engine is warm."""
        return msgspec.json.decode(self._ask(msgspec.json.encode(self.task)), type=WarmUp)

    def run(self, calls: int) -> Round:
        return msgspec.json.decode(self._ask(str(calls).encode()), type=Round)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.words.close()

    def _ask(self, line: bytes) -> bytes:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        answer = self.process.stdout.readline()
        if not answer:
            raise self._failure()
        return answer

    def _failure(self) -> MisgnetError:
        self.process.communicate()
        self.words.seek(0)
        last = (self.words.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        kind, _, message = last.removeprefix(f"{errors.__name__}.").partition(": ")
        known = getattr(errors, kind, None) if message else None
        if isinstance(known, type) and issubclass(known, MisgnetError):
            return known(f"the benchmark of {self.name} ended early: {message}")
        return MisgnetError(f"the benchmark of {self.name} ended early: {last}")


def _calls(task: Workload, warm_up: WarmUp, seconds: float) -> int:
    """As many as fit, at least two a stream and equally many for each."""
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
