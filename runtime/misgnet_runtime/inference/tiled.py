"""An image pair of any size through a function of tiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Predict, RgbImage
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.tiling import cover, cut


def predict_scene(predict: Predict, before: RgbImage, after: RgbImage, tile: int, batch: int) -> NDArray[np.float32]:
    """Probability of change, float32 (H, W), of a pair uint8 (H, W, 3), tile by tile in batches.

    ``predict``: uint8 (B, T, T, 3) of both dates -> float32 (B, T, T). Edge tiles are shifted inward, and a
    scene smaller than a tile is reflected; each pixel is answered by exactly one tile. Raises InputError
    where the dates differ in size or are not images.
    """
    check_pair(before, after)
    height, width = before.shape[:2]
    result = np.empty((height, width), np.float32)
    cells = cover(height, width, tile)
    for start in range(0, len(cells), batch):
        part = cells[start : start + batch]
        tiles = (np.stack([cut(image, cell) for cell in part]) for image in (before, after))
        for cell, answer in zip(part, predict(*tiles), strict=True):
            result[cell.owned_in_image()] = answer[cell.owned_in_tile()]
    return result


def check_pair(before: RgbImage, after: RgbImage) -> None:
    """InputError unless both dates are uint8 (H, W, 3) of one size, with a pixel at least."""
    for date, image in (("before", before), ("after", after)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"the image '{date}' is {image.dtype} {image.shape}; it must be uint8 (H, W, 3)")
    if before.shape != after.shape:
        raise InputError(
            f"the two dates differ in size: {before.shape[1]} x {before.shape[0]} and "
            f"{after.shape[1]} x {after.shape[0]} px; a pair has one size and one grid"
        )
