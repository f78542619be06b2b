"""The process that times a plain matrix product; else as :mod:`misgnet_runtime.throughput_worker`."""

from __future__ import annotations

import math
import statistics
import sys
import time

import msgspec
import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.throughput import Product
from misgnet_runtime.throughput_worker import serve_calls

_PROBE = 512
_TRIES = 5  # the first wakes NumPy's threads
_SIZES = (64, 4096)  # rows that are too few to compute, and that take a whole 192 MiB


def serve() -> None:
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Product)
    first, second, found = matrices(rows_for(task.seconds))
    serve_calls(lambda: np.matmul(first, second, out=found), task)


def rows_for(seconds: float) -> int:
    """Of square matrices whose product takes about ``seconds``; a product takes as long as the cube of its rows."""
    first, second, found = matrices(_PROBE)
    taken = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        np.matmul(first, second, out=found)
        taken.append(time.perf_counter() - start)
    rows = round(_PROBE * math.pow(seconds / statistics.median(taken), 1 / 3))
    return min(max(rows, _SIZES[0]), _SIZES[1])


def matrices(rows: int) -> NDArray[np.float32]:
    """Two factors and the room for their product, float32 (3, rows, rows)."""
    return np.random.default_rng(0).random((3, rows, rows), np.float32)


if __name__ == "__main__":
    serve()
