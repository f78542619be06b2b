"""Times matrix products in NumPy and PyTorch, to show the variation and the peak of this machine's speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.contest.guests.exchange import serve, versions
from misgnet_runtime.measure.matrix_baseline import matrices, rows_for

_held: list[Any] = []


def open_product(request: dict[str, Any]) -> dict[str, Any]:
    """Prepares a product in NumPy that takes about ``seconds``."""
    rows = rows_for(request["seconds"])
    _held[:] = matrices(rows)
    return {"rows": rows}


def clock(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the milliseconds of each of ``calls`` products."""
    first, second, found = _held
    return {"ms": [1000 * s for s in _seconds(lambda: np.matmul(first, second, out=found), request["calls"])]}


def multiply(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the best rate of ``calls`` products in NumPy or PyTorch (``library``), in operations/s."""
    first, second, found = matrices(request["rows"])
    if request["library"] == "torch":
        import torch

        torch.set_num_threads(request["threads"])
        a, b, c = map(torch.from_numpy, (first, second, found))
        taken = _seconds(lambda: torch.mm(a, b, out=c), request["calls"])
    else:
        taken = _seconds(lambda: np.matmul(first, second, out=found), request["calls"])
    return {"operations_per_second": 2 * request["rows"] ** 3 / min(taken), "versions": versions(request["library"])}


def _seconds(call: Callable[[], object], calls: int) -> list[float]:
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


if __name__ == "__main__":
    serve({"open": open_product, "time": clock, "multiply": multiply})
