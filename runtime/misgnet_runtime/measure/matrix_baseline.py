"""Times a matrix product of NumPy together with the engines, as a baseline for the variation of speed."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.inference.throughput import Workload
from misgnet_runtime.inference.throughput_worker import serve_calls

_PROBE_ROWS = 512
_REPEATS = 5  # the first one wakes NumPy's threads
_ROW_LIMITS = (64, 4096)  # fewer rows are too quick to time; 4,096 rows take 192 MiB


class MatrixProduct(Workload, frozen=True):
    """A workload whose calls take about ``seconds`` each."""

    worker: ClassVar[str] = "misgnet_runtime.measure.matrix_baseline"
    name: ClassVar[str] = "matrix product"
    precision: ClassVar[str] = "float32"
    seconds: float


def serve() -> None:
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=MatrixProduct)
    first, second, found = matrices(rows_for(task.seconds))
    serve_calls(lambda: np.matmul(first, second, out=found), task)


def seconds_of(rows: int) -> float:
    """Returns the median time of a product of two matrices with ``rows`` rows, in seconds."""
    first, second, found = matrices(rows)
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        np.matmul(first, second, out=found)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def rows_for(seconds: float, *, seconds_of: Callable[[int], float] = seconds_of) -> int:
    """Returns the number of rows of square matrices whose product takes about ``seconds``.

    The time grows with the cube of the rows. A small product gives a first estimate, which a second one refines;
    ``seconds_of`` measures them.
    """
    rows = _PROBE_ROWS
    for _ in range(2):
        wanted = round(rows * math.pow(seconds / seconds_of(rows), 1 / 3))
        rows = min(max(wanted, _ROW_LIMITS[0]), _ROW_LIMITS[1])
    return rows


def matrices(rows: int) -> NDArray[np.float32]:
    """Returns two random factors and the buffer of their product, float32 (3, rows, rows)."""
    return np.random.default_rng(0).random((3, rows, rows), np.float32)


if __name__ == "__main__":
    serve()
