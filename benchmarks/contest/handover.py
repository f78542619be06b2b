"""Hands tiles to guests as ``.npy`` files, one an input, and takes their answers back."""

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
    """Write the graph's inputs for all ``tiles`` in their order to ``folder``, which is emptied.

    One tile is in memory at a time.
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


def replay(answers: Path, interface: Interface, count: int) -> Predict:
    """A function of tiles that gives a guest's answers in their order, as if it had been asked now.

    Raises ContenderFailed where they are not ``count`` answers of the interface's form.
    """
    found = np.load(answers, mmap_mode="r")
    wanted = (count, *interface.outputs()[0].shape[1:])
    if found.shape != wanted:
        raise ContenderFailed(f"it answers with {found.shape}, the interface says {wanted}")
    position = 0

    def predict(before: NDArray[np.uint8], _after: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal position
        position += len(before)
        return to_probability(found[position - len(before) : position], interface)

    return predict
