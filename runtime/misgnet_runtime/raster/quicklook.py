"""Writes a small picture of a scene: before, after, and after with the change in red."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.pixels import RGB8
from misgnet_runtime.raster.display import displayed
from misgnet_runtime.raster.geotiff import load_rasterio, open_geotiff
from misgnet_runtime.raster.reader import Pair
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.raster.writer import CHANGED

MOST_PIXELS = 1024  # longest side of each date in the picture
_STRIP = 128  # rows of 8-bit RGB read at once; reading a warped raster row by row is slow
_RED, _WHITE = np.array((255, 0, 0), np.uint8), np.array((255, 255, 255), np.uint8)


def write_quicklook(path: Path, pair: Pair, scalings: tuple[Scaling, Scaling], change: Path) -> None:
    """Writes a PNG with every n-th pixel of both dates, side by side; red if any of the n x n pixels is changed.

    Pixels without data are white; see :func:`displayed` for the colours. ``change`` is the pair's change raster. Raises
    OSError if writing fails.
    """
    step = -(-max(pair.grid.height, pair.grid.width) // MOST_PIXELS)
    rows = max(1, _STRIP * RGB8.bytes // pair.before.pixels.bytes)
    spans = Span(0, pair.grid.height).split(max(1, rows // step) * step)
    with open_geotiff(load_rasterio("a scene"), change) as classes:
        parts = [_sampled(pair, scalings, classes, span, step) for span in spans]
    before, after, valid, changed = (np.concatenate(part) for part in zip(*parts, strict=True))
    shown = displayed(before, after, valid)
    before, after = (np.where(valid[..., None], image, _WHITE) for image in shown)
    picture = np.concatenate([before, after, np.where(changed[..., None], _RED, after)], axis=1)
    PIL.Image.fromarray(picture).save(path, format="PNG")


def _sampled(
    pair: Pair, scalings: tuple[Scaling, Scaling], classes: Any, rows: Span, step: int
) -> tuple[Image, Image, Mask, Mask]:
    """Returns every n-th pixel of ``rows``: both dates, (h, w, C), whether they are valid, and whether changed."""
    columns = Span(0, pair.grid.width)
    pixels = pair.read(scalings, rows, columns)
    # Copies: views would keep all pixels in memory.
    before, after = (image[::step, ::step].copy() for image in (pixels.before, pixels.after))
    changed = classes.read(1, window=((rows.start, rows.stop), (columns.start, columns.stop))) == CHANGED
    for axis, length in enumerate(changed.shape):
        changed = np.logical_or.reduceat(changed, np.arange(0, length, step), axis)
    return before, after, pixels.valid[::step, ::step].copy(), changed
