"""Draws pictures of predictions: error maps of the worst tiles, and overlays of changes on an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from misgnet.evaluation.tiles import EvaluatedTile
from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.formatting import plural

# The colours differ in lightness and in hue, so that colour-blind readers can distinguish them.
LEGEND: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("true negative", (18, 18, 22)),
    ("true positive", (255, 255, 255)),
    ("false positive", (245, 105, 0)),
    ("false negative", (40, 110, 235)),
)
CHANGE = (255, 40, 160)  # rare in aerial images
_COLUMNS = ("before", "after", "label", "errors")
_GAP, _LINE = 8, 22
_BACKGROUND, _INK = (32, 33, 38), (235, 235, 235)


def error_map(predicted: Mask, label: Mask) -> Image:
    """Returns true and false positives and negatives in the colours of ``LEGEND``, uint8 (H, W, 3).

    Both masks are bool (H, W).
    """
    codes = np.select([predicted & label, predicted & ~label, ~predicted & label], [1, 2, 3], 0)
    return np.array([colour for _, colour in LEGEND], np.uint8)[codes]


def draw_worst(tiles: Sequence[EvaluatedTile]) -> PIL.Image.Image:
    """Draws one row per tile: both dates, label and error map; pixels that count for a neighbouring tile are darker."""
    if not tiles:
        return _note("all pixels of all tiles are correct")
    side = tiles[0].mask.shape[0]
    width = max(len(_COLUMNS) * (side + _GAP) + _GAP, 560)
    row = side + _LINE + _GAP
    sheet = PIL.Image.new("RGB", (width, 2 * _LINE + _GAP + len(tiles) * row), _BACKGROUND)
    brush, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, name in enumerate(_COLUMNS):
        brush.text((_GAP + column * (side + _GAP), 3), name, _INK, font)
    for number, evaluated in enumerate(tiles):
        top = _LINE + number * row
        for column, pixels in enumerate(_panels(evaluated)):
            sheet.paste(PIL.Image.fromarray(pixels), (_GAP + column * (side + _GAP), top))
        brush.text((_GAP, top + side + 2), _caption(evaluated), _INK, font)
    _draw_legend(brush, font, _LINE + len(tiles) * row)
    return sheet


def overlay(image: Image, mask: Mask) -> Image:
    """Returns the image, uint8 (H, W, 3), with the changed areas of ``mask``, bool (H, W), tinted and outlined."""
    colour = np.array(CHANGE, np.float32)
    result = image.copy()
    result[mask] = (0.65 * image[mask] + 0.35 * colour).round().astype(np.uint8)
    result[_outline(mask)] = CHANGE
    return result


def _outline(mask: Mask) -> Mask:
    """Returns changed pixels with an unchanged pixel above, below, left or right; the outside counts as changed."""
    padded = np.pad(mask, 1, constant_values=True)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inside)


def _panels(evaluated: EvaluatedTile) -> list[Image]:
    tile = evaluated.tile
    label = np.repeat(np.where(tile.label, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    panels = [tile.before, tile.after, label, error_map(evaluated.mask, tile.label)]
    return [_darkened(panel, tile.owned) for panel in panels]


def _darkened(panel: Image, owned: tuple[slice, slice]) -> Image:
    result: NDArray[np.uint8] = panel // 3
    result[owned] = panel[owned]
    return result


def _caption(evaluated: EvaluatedTile) -> str:
    counts = evaluated.confusion
    f1 = "" if counts.f1 is None else f", F1 {counts.f1:.3f}"
    wrong = f"{plural(counts.fp, 'false positive')}, {plural(counts.fn, 'false negative')}"
    return f"{evaluated.tile.ref.name}: {wrong}{f1}"


def _draw_legend(brush: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, top: int) -> None:
    left = _GAP
    for name, colour in LEGEND:
        brush.rectangle((left, top + 4, left + 14, top + 18), colour, _INK)
        brush.text((left + 20, top + 2), name, _INK, font)
        left += 135


def _note(text: str) -> PIL.Image.Image:
    sheet = PIL.Image.new("RGB", (560, 2 * _LINE), _BACKGROUND)
    ImageDraw.Draw(sheet).text((_GAP, _GAP), text, _INK, ImageFont.load_default(14))
    return sheet
