"""The process that times one engine, a child of :func:`misgnet_runtime.inference.throughput.measure`.

It reads its task from the first line of its input and answers with the warm-up; each further line is a number of
calls, answered with a round. It ends with its input.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.bundle.golden import read_golden
from misgnet_runtime.engines import ExecutionOptions, open_engine_file
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.throughput import Round, Task, WarmUp, Workload

_WINDOW = 3  # calls of a stream whose median is compared with that of the window before
_SETTLED = 0.05


def serve() -> None:
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    files = CheckedFiles(Path(task.root))
    if task.manifest_sha256:
        files.expect(task.files, task.manifest_sha256)
    golden = files.read(task.golden) if task.manifest_sha256 else None
    tiles = read_golden(Path(task.golden), golden)
    picked = np.resize(np.arange(len(tiles.before)), task.batch)
    before, after = tiles.before[picked], tiles.after[picked]
    execution = ExecutionOptions(threads=task.threads, streams=task.streams)
    engine = open_engine_file(task.entry, files, task.interface.max_batch, execution)
    with ChangeDetector(engine, task.interface) as detector:
        serve_calls(lambda: detector.probability(before, after), task)


def serve_calls(call: Callable[[], object], task: Workload) -> None:
    """Warm up, then time as many calls as each line of the input says."""
    with ThreadPoolExecutor(task.streams) as pool:

        def run(calls: int) -> Round:
            return time_calls(call, calls, pool)

        _answer(warm_up(run, task))
        for line in sys.stdin.buffer:
            _answer(run(int(line)))


def time_calls(call: Callable[[], object], calls: int, pool: ThreadPoolExecutor) -> Round:
    """Each thread of ``pool`` calls again as soon as it has its answer, until there were ``calls`` of them all."""

    def milliseconds(_: int) -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    start = time.perf_counter()
    found = list(pool.map(milliseconds, range(calls)))
    return Round(time.perf_counter() - start, found)


def warm_up(run: Callable[[int], Round], task: Workload) -> WarmUp:
    """Run windows of calls until the medians of two in a row agree, or ``task.warm_up`` seconds are over."""
    calls, before, start = 0, 0.0, time.perf_counter()
    while True:
        window = run(_WINDOW * task.streams)
        calls += len(window.milliseconds)
        median = statistics.median(window.milliseconds)
        seconds, steady = time.perf_counter() - start, abs(median - before) <= _SETTLED * before
        if steady or seconds >= task.warm_up:
            return WarmUp(calls, seconds, steady, window.seconds / len(window.milliseconds))
        before = median


def _answer(value: WarmUp | Round) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
