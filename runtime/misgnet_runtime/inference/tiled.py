"""Predicts an image pair of any size with a function that predicts tiles."""

from __future__ import annotations

from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Image, Predict
from misgnet_runtime.errors import InputError
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.blending import RowBlender, lay_out
from misgnet_runtime.raster.tiling import Span


def predict_scene(
    predict: Predict, before: Image, after: Image, tile: int, *, batch: int, overlap: int, pixels: PixelFormat = RGB8
) -> NDArray[np.float32]:
    """Returns the probability of change, float32 (H, W), of an image pair: tiles are predicted and blended.

    The result equals that of the same pixels as a scene that is not georeferenced. A pair smaller than a tile is
    extended by reflection. Besides the result, memory holds one row of tiles.

    Args:
        predict: Maps (B, T, T, C) of both dates to float32 (B, T, T).
        before: (H, W, C).
        after: (H, W, C).
        tile: Side of a tile, T.
        batch: Tiles per call, at most; a call has tiles of one row.
        overlap: Pixels that neighbouring tiles share, at most 3/4 of a tile.
        pixels: The format of both dates.

    Raises:
        InputError: The dates differ in size, or do not have the format.
        UsageError: ``overlap`` is out of range.
    """
    check_pair(before, after, pixels)
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


def check_pair(before: Image, after: Image, pixels: PixelFormat = RGB8) -> None:
    """Raises InputError unless both dates have the format and the same size, with at least one pixel."""
    for date, image in (("before", before), ("after", after)):
        if image.dtype != pixels.samples or image.ndim != 3 or image.shape[2] != pixels.bands or not image.size:
            raise InputError(
                f"the image '{date}' is {image.dtype} {image.shape}; it must be {pixels.samples} (H, W, {pixels.bands})"
            )
    if before.shape != after.shape:
        raise InputError(
            f"the two dates differ in size: {before.shape[1]} x {before.shape[0]} and "
            f"{after.shape[1]} x {after.shape[0]} px; both must have the same size and grid"
        )
