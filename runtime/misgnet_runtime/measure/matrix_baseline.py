"""A plain matrix product of NumPy, timed beside engines: how evenly this machine computes whatever it is given."""

from __future__ import annotations

import math
import statistics
import sys
import time
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.inference.throughput import Workload
from misgnet_runtime.inference.throughput_worker import serve_calls

_PROBE = 512
_TRIES = 5  # the first wakes NumPy's threads
_SIZES = (64, 4096)  # rows that are too few to compute, and that take a whole 192 MiB


class MatrixProduct(Workload, frozen=True):
    """Calls that take about ``seconds`` each."""

    worker: ClassVar[str] = "misgnet_runtime.measure.matrix_baseline"
    name: ClassVar[str] = "matrix product"
    precision: ClassVar[str] = "float32"
    seconds: float


def serve() -> None:
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=MatrixProduct)
    first, second, found = matrices(rows_for(task.seconds))
    serve_calls(lambda: np.matmul(first, second, out=found), task)


def rows_for(seconds: float) -> int:
    """Of square matrices whose product takes about ``seconds``; a product takes as long as the cube of its rows.

    What a small one takes says roughly how many, and what these take says it better.
    """
    rows = _PROBE
    for _ in range(2):
        wanted = round(rows * math.pow(seconds / seconds_of(rows), 1 / 3))
        rows = min(max(wanted, _SIZES[0]), _SIZES[1])
    return rows


def seconds_of(rows: int) -> float:
    """Median time of a product."""
    first, second, found = matrices(rows)
    taken = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        np.matmul(first, second, out=found)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def matrices(rows: int) -> NDArray[np.float32]:
    """Two factors and the room for their product, float32 (3, rows, rows)."""
    return np.random.default_rng(0).random((3, rows, rows), np.float32)


if __name__ == "__main__":
    serve()
