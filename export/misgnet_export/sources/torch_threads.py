"""Runs PyTorch on tiles with one thread per tile and a tile per core.

Eager PyTorch divides each small operator among all cores and waits for the slowest one, spinning: on two shared cores,
a tile took 3 to 8 times the CPU time that it takes in one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from misgnet_runtime.engines import streams_on_cpu

OfTiles = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]


@contextmanager
def one_thread_per_call() -> Iterator[None]:
    """Makes every call of PyTorch, in threads started meanwhile as well, compute in the thread that calls it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tile_per_core(function: OfTiles) -> OfTiles:
    """Returns ``function`` of tiles of both dates, uint8 (B, T, T, 3), which is called with single tiles, one per core.

    ``function`` returns an array whose first axis is the batch; the results are joined in the order of the tiles.
    """

    def run(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
        def of_tile(index: int) -> NDArray[Any]:
            return function(before[index : index + 1], after[index : index + 1])

        with ThreadPoolExecutor(streams_on_cpu()) as pool:
            return np.concatenate(list(pool.map(of_tile, range(len(before)))))

    return run
