"""Writes tiles as ``.npy`` files for guests, one file per graph input, and reads their predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contest.guest import ContenderFailed
from benchmarks.contest.kept import emptied
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Predict
from misgnet_runtime.inference.detector import arrays_for, to_probability
from misgnet_runtime.raster.dataset import TileSet, stack


def hand_over(tiles: TileSet, interface: Interface, folder: Path) -> Path:
    """Writes the graph's inputs for all ``tiles`` in order to ``folder``, which is emptied first; returns the folder.

    Only one tile is in memory at a time.
    """
    emptied(folder)
    files: dict[str, NDArray[np.generic]] = {}
    for index, tile in enumerate(tiles.tiles()):
        for name, array in arrays_for(interface, *stack([tile])).items():
            if name not in files:
                shape = (len(tiles), *array.shape[1:])
                files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", array.dtype, shape)
            files[name][index] = array[0]
    return folder


def replay(path: Path, interface: Interface, count: int) -> Predict:
    """Returns a prediction function that yields a guest's stored predictions in order.

    Raises:
        ContenderFailed: The file does not hold ``count`` predictions of the interface's shape.
    """
    found = np.load(path, mmap_mode="r")
    wanted = (count, *interface.outputs()[0].shape[1:])
    if found.shape != wanted:
        raise ContenderFailed(f"its output has the shape {found.shape}; the interface requires {wanted}")
    position = 0

    def predict(before: NDArray[np.uint8], _after: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal position
        position += len(before)
        return to_probability(found[position - len(before) : position], interface)

    return predict
