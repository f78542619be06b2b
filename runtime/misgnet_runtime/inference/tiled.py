"""Predicts an image pair of any size with a function that predicts tiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Predict, RgbImage
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.tiling import cover, cut


def predict_scene(predict: Predict, before: RgbImage, after: RgbImage, tile: int, batch: int) -> NDArray[np.float32]:
    """Returns the probability of change, float32 (H, W), of an image pair, predicted tile by tile in batches.

    Edge tiles are shifted inward, and a scene smaller than a tile is padded by reflection. Each pixel comes from one
    tile.

    Args:
        predict: Maps uint8 (B, T, T, 3) of both dates to float32 (B, T, T).
        before: uint8 (H, W, 3).
        after: uint8 (H, W, 3).
        tile: Side of a tile, T.
        batch: Tiles per call, B.

    Raises:
        InputError: The dates differ in size, or are not images.
    """
    check_pair(before, after)
    height, width = before.shape[:2]
    result = np.empty((height, width), np.float32)
    cells = cover(height, width, tile)
    for start in range(0, len(cells), batch):
        part = cells[start : start + batch]
        tiles = (np.stack([cut(image, cell) for cell in part]) for image in (before, after))
        for cell, probability in zip(part, predict(*tiles), strict=True):
            result[cell.owned_in_image()] = probability[cell.owned_in_tile()]
    return result


def check_pair(before: RgbImage, after: RgbImage) -> None:
    """Raises InputError unless both dates are uint8 (H, W, 3) of the same size, with at least one pixel."""
    for date, image in (("before", before), ("after", after)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"the image '{date}' is {image.dtype} {image.shape}; it must be uint8 (H, W, 3)")
    if before.shape != after.shape:
        raise InputError(
            f"the two dates differ in size: {before.shape[1]} x {before.shape[0]} and "
            f"{after.shape[1]} x {after.shape[0]} px; both must have the same size and grid"
        )
