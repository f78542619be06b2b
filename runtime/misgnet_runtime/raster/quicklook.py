"""Writes a small picture of a scene: before, after, and after with the change in red."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from misgnet_runtime.callables import Image
from misgnet_runtime.raster.geotiff import load_rasterio, open_geotiff
from misgnet_runtime.raster.reader import Pair
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.raster.writer import CHANGED

MOST_PIXELS = 1024  # longest side of each date in the picture
_STRIP = 128  # rows read at once; reading a warped raster row by row is slow
_RED, _WHITE = np.array((255, 0, 0), np.uint8), np.array((255, 255, 255), np.uint8)


def write_quicklook(path: Path, pair: Pair, scalings: tuple[Scaling, Scaling], change: Path) -> None:
    """Writes a PNG with every n-th pixel of both dates, side by side; red if any of the n x n pixels is changed.

    Pixels without data are white. ``change`` is the pair's change raster. Raises OSError if writing fails.
    """
    step = -(-max(pair.grid.height, pair.grid.width) // MOST_PIXELS)
    strip = max(1, _STRIP // step) * step
    spans = Span(0, pair.grid.height).split(strip)
    with open_geotiff(load_rasterio("a scene"), change) as classes:
        picture = np.concatenate([_lines(pair, scalings, classes, rows, step) for rows in spans])
    PIL.Image.fromarray(picture).save(path, format="PNG")


def _lines(pair: Pair, scalings: tuple[Scaling, Scaling], classes: Any, rows: Span, step: int) -> Image:
    """Returns the picture's lines for ``rows``, uint8 (h, 3 w, 3)."""
    columns = Span(0, pair.grid.width)
    pixels = pair.read(scalings, rows, columns)
    before, after, valid = (part[::step, ::step] for part in (pixels.before, pixels.after, pixels.valid))
    changed = classes.read(1, window=((rows.start, rows.stop), (columns.start, columns.stop))) == CHANGED
    for axis, length in enumerate(changed.shape):
        changed = np.logical_or.reduceat(changed, np.arange(0, length, step), axis)
    before, after = (np.where(valid[..., None], image, _WHITE) for image in (before, after))
    return np.concatenate([before, after, np.where(changed[..., None], _RED, after)], axis=1)
