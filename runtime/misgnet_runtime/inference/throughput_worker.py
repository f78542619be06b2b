"""Times one engine in a child process of :func:`misgnet_runtime.inference.throughput.measure`.

The first line of standard input is the task; the reply is the warm-up. Each further line is a number of calls; the
reply is a round. The process exits at the end of its input.
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

_WINDOW = 3  # calls per stream whose median is compared with that of the previous window
_SETTLED = 0.05  # relative difference of two medians that counts as steady


def serve() -> None:
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    files = CheckedFiles(Path(task.root))
    if task.manifest_sha256:
        files.expect(task.files, task.manifest_sha256)
    golden = files.read(task.golden) if task.manifest_sha256 else None
    tiles = read_golden(Path(task.golden), golden, task.interface)
    picked = np.resize(np.arange(len(tiles.before)), task.batch)
    before, after = tiles.before[picked], tiles.after[picked]
    execution = ExecutionOptions(threads=task.threads, streams=task.streams)
    engine = open_engine_file(task.entry, files, task.interface.max_batch, execution)
    with ChangeDetector(engine, task.interface) as detector:
        serve_calls(lambda: detector.probability(before, after), task)


def serve_calls(call: Callable[[], object], task: Workload) -> None:
    """Warms up, then times as many calls as each line of the input requests."""
    with ThreadPoolExecutor(task.streams) as pool:

        def run(calls: int) -> Round:
            return time_calls(call, calls, pool)

        _reply(warm_up(run, task))
        for line in sys.stdin.buffer:
            _reply(run(int(line)))


def time_calls(call: Callable[[], object], calls: int, pool: ThreadPoolExecutor) -> Round:
    """Times ``calls`` calls in total; each thread of ``pool`` calls again as soon as its call returned."""

    def milliseconds(_: int) -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    start = time.perf_counter()
    found = list(pool.map(milliseconds, range(calls)))
    return Round(time.perf_counter() - start, found)


def warm_up(run: Callable[[int], Round], task: Workload) -> WarmUp:
    """Runs windows of calls until two consecutive medians agree, or ``task.warm_up`` seconds have passed."""
    calls, before, start = 0, 0.0, time.perf_counter()
    while True:
        window = run(_WINDOW * task.streams)
        calls += len(window.milliseconds)
        median = statistics.median(window.milliseconds)
        seconds, steady = time.perf_counter() - start, abs(median - before) <= _SETTLED * before
        if steady or seconds >= task.warm_up:
            return WarmUp(calls, seconds, steady, window.seconds / len(window.milliseconds))
        before = median


def _reply(value: WarmUp | Round) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
