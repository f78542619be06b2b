"""Which tiles calibrate: drawn from a seed, never random numbers in place of images."""

from __future__ import annotations

import warnings

import numpy as np

from misgnet_runtime.errors import InputError
from misgnet_runtime.tiles import TileSet

MIN_TILES = 16
RECOMMENDED_TILES = 100


class FewTilesWarning(UserWarning):
    """Fewer calibration tiles than recommended."""


def draw_tiles(tiles: TileSet, count: int, seed: int) -> TileSet:
    """``count`` tiles drawn without replacement, or all where there are fewer.

    Raises InputError below 16 tiles, warns with FewTilesWarning below 100.
    """
    chosen = min(count, len(tiles))
    if chosen < MIN_TILES:
        raise InputError(
            f"{chosen} calibration tiles ({len(tiles)} in {tiles.root}, {count} asked for); at least "
            f"{MIN_TILES} are needed, and {RECOMMENDED_TILES} or more are advised"
        )
    if chosen < RECOMMENDED_TILES:
        found = f"only {chosen} calibration tiles from {tiles.root}"
        warnings.warn(f"{found}; {RECOMMENDED_TILES} or more are advised", FewTilesWarning, stacklevel=2)
    indices = np.random.default_rng(seed).choice(len(tiles), chosen, replace=False)
    return tiles.subset(indices.tolist())
