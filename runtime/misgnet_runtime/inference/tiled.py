"""Predicts an image pair of any size with a function that predicts tiles."""

from __future__ import annotations

from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Image, Predict
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.blending import RowBlender, lay_out
from misgnet_runtime.raster.tiling import Span


def predict_scene(
    predict: Predict, before: Image, after: Image, tile: int, *, batch: int, overlap: int
) -> NDArray[np.float32]:
    """Returns the probability of change, float32 (H, W), of an image pair: tiles are predicted and blended.

    The result equals that of the same pixels as a scene that is not georeferenced. A pair smaller than a tile is
    extended by reflection. Besides the result, memory holds one row of tiles.

    Args:
        predict: Maps uint8 (B, T, T, 3) of both dates to float32 (B, T, T).
        before: uint8 (H, W, 3).
        after: uint8 (H, W, 3).
        tile: Side of a tile, T.
        batch: Tiles per call, at most; a call has tiles of one row.
        overlap: Pixels that neighbouring tiles share, at most 3/4 of a tile.

    Raises:
        InputError: The dates differ in size, or are not images.
        UsageError: ``overlap`` is out of range.
    """
    check_pair(before, after)
    height, width = before.shape[:2]
    result = np.empty((height, width), np.float32)

    def take(rows: Span, values: NDArray[np.float32]) -> None:
        result[rows.start : rows.stop] = values

    layout = lay_out(height, width, tile, overlap)
    blender = RowBlender(layout, take)
    for _, row in groupby(layout.tiles(), key=lambda place: place.row):
        while part := list(islice(row, batch)):
            tiles = (np.stack([place.cut(image) for place in part]) for image in (before, after))
            for place, probability in zip(part, predict(*tiles), strict=True):
                blender.add(place, probability)
    return result


def check_pair(before: Image, after: Image) -> None:
    """Raises InputError unless both dates are uint8 (H, W, 3) of the same size, with at least one pixel."""
    for date, image in (("before", before), ("after", after)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"the image '{date}' is {image.dtype} {image.shape}; it must be uint8 (H, W, 3)")
    if before.shape != after.shape:
        raise InputError(
            f"the two dates differ in size: {before.shape[1]} x {before.shape[0]} and "
            f"{after.shape[1]} x {after.shape[0]} px; both must have the same size and grid"
        )
