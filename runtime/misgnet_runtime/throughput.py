"""Latency and throughput: each engine in a process of its own, all of them measured in alternating rounds.

A worker (``python -m misgnet_runtime.throughput``) opens one engine, warms it up and then times as many calls
as it is told, one line of JSON for each request. Two engines in one process would compete with their thread
pools; rounds in turn keep a ratio meaningful when the machine's speed drifts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Progress
from misgnet_runtime.detector import ChangeDetector
from misgnet_runtime.engines import open_engine_file
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.golden import read_golden
from misgnet_runtime.manifest import EngineEntry, Interface, Struct

ROUNDS = 5


class Task(Struct, frozen=True):
    """What a worker opens: an engine's entry, the folder its paths start from, the batch and the threads."""

    entry: EngineEntry
    root: str
    interface: Interface
    golden: str
    batch: int
    threads: int | None = None


class Timing(Struct, frozen=True):
    """Latency of one call in milliseconds, and image pairs a second, over ``calls`` calls of ``batch`` pairs."""

    engine: str
    precision: str
    batch: int
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    pairs_per_second: float


def measure(tasks: list[Task], seconds: float = 2.0, progress: Progress | None = None) -> list[Timing]:
    """Time all tasks side by side: ``ROUNDS`` rounds, each about ``seconds`` / ``ROUNDS`` a task.

    Raises MisgnetError with a worker's own words where one fails.
    """
    with ExitStack() as running:
        workers = [running.enter_context(closing(_Worker(task))) for task in tasks]
        times: list[list[float]] = [[] for _ in tasks]
        calls = [max(2, round(seconds / ROUNDS / worker.warm_up())) for worker in workers]
        for done in range(1, ROUNDS + 1):
            for index, worker in enumerate(workers):
                times[index] += worker.run(calls[index])
            if progress:
                progress(done, ROUNDS)
    return [_timing(task, np.array(ms)) for task, ms in zip(tasks, times, strict=True)]


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, task: Task) -> None:
        self.name = f"{task.entry.name} at batch {task.batch}"
        command = [sys.executable, "-m", "misgnet_runtime.throughput"]
        # A file, not a pipe: a library that writes pages of warnings must not fill a pipe and block.
        self.words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.words, env=_environment()
        )
        self.task = msgspec.json.encode(task)

    def warm_up(self) -> float:
        """Tell the worker its task and wait until the engine is warm; seconds of one call."""
        self._send(self.task)
        return self.run(3)[-1] / 1000

    def run(self, calls: int) -> list[float]:
        """Milliseconds of each of ``calls`` calls."""
        self._send(str(calls).encode())
        assert self.process.stdout
        answer = self.process.stdout.readline()
        if not answer:
            raise MisgnetError(f"the benchmark of {self.name} ended early: {self._last_words()}")
        return msgspec.json.decode(answer, type=list[float])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.words.close()

    def _send(self, line: bytes) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise MisgnetError(f"the benchmark of {self.name} ended early: {self._last_words()}") from None

    def _last_words(self) -> str:
        self.process.communicate()
        self.words.seek(0)
        return (self.words.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]


def _environment() -> dict[str, str]:
    """The parent's environment, with its import path: it may run from a checkout that is not installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path)}


def _timing(task: Task, ms: NDArray[np.float64]) -> Timing:
    p50, p90, p99 = (float(x) for x in np.percentile(ms, (50, 90, 99)))
    return Timing(
        task.entry.name, task.entry.precision, task.batch, len(ms), p50, p90, p99,
        1000 * task.batch * len(ms) / float(ms.sum()),
    )  # fmt: skip


def _serve() -> None:
    """The worker: a task on the first line, then a number of calls on each further line."""
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    tiles = read_golden(Path(task.golden))
    picked = np.resize(np.arange(len(tiles.before)), task.batch)
    before, after = tiles.before[picked], tiles.after[picked]
    engine = open_engine_file(task.entry, Path(task.root), task.interface.max_batch, task.threads)
    with ChangeDetector(engine, task.interface) as detector:
        for line in sys.stdin.buffer:
            times = []
            for _ in range(int(line)):
                start = time.perf_counter()
                detector.probability(before, after)
                times.append(1000 * (time.perf_counter() - start))
            sys.stdout.buffer.write(msgspec.json.encode(times) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
