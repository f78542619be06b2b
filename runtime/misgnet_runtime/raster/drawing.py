"""Draws on pictures of a scene: changed areas, areas without data, a scale bar and an arrow to the north."""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, cos, floor, hypot, log10, sin

import numpy as np
from numpy.typing import NDArray
from PIL.ImageDraw import ImageDraw
from PIL.ImageFont import FreeTypeFont, ImageFont

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.raster.resolution import Steps
from misgnet_runtime.raster.tiling import Scalar

Font = FreeTypeFont | ImageFont
CHANGE_RED = 255, 0, 0
FILL = 0.3  # opacity of the fill of changed areas
INK, SOFT = (27, 29, 33), (92, 98, 107)
_HATCH_LIGHT, _HATCH_DARK, _HATCH = 242, 206, 5  # colours of areas without data, and the width of a stripe in pixels


def outline_of(changed: Mask, width: int = 1) -> Mask:
    """Returns the pixels of changed areas, bool (h, w), that are at most ``width`` pixels from an unchanged one."""
    inner = changed
    for _ in range(width):
        padded = np.pad(inner, 1)
        inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return changed & ~inner


def marked(image: Image, changed: Mask, width: int = 1) -> Image:
    """Returns an 8-bit RGB image with changed areas, bool (h, w), under a translucent fill, and their outline."""
    filled = np.rint(image * (1 - FILL) + np.array(CHANGE_RED) * FILL).astype(np.uint8)
    shown = np.where(changed[..., None], filled, image)
    return np.where(outline_of(changed, width)[..., None], np.array(CHANGE_RED, np.uint8), shown)


def hatched(image: Image, valid: Mask) -> Image:
    """Returns an 8-bit RGB image with stripes where it has no data; ``valid``: bool (h, w)."""
    if valid.all():
        return image
    height, width = valid.shape
    stripes = np.where((np.arange(height)[:, None] + np.arange(width)) // _HATCH % 2, _HATCH_LIGHT, _HATCH_DARK).astype(
        np.uint8
    )
    return np.where(valid[..., None], image, stripes[..., None])


def swatches(unit: float = 1) -> list[tuple[Image, str]]:
    """Returns the legend: pictures of 22 x 16 ``unit`` pixels, 8-bit RGB (h, w, 3), with their meanings."""
    shape = round(16 * unit), round(22 * unit)
    grey, everywhere, nowhere = np.full((*shape, 3), 150, np.uint8), np.ones(shape, np.bool_), np.zeros(shape, np.bool_)
    return [(marked(grey, everywhere, 2), "changed"), (hatched(grey, nowhere), "no data in at least one date")]


def enlarged(image: NDArray[Scalar], factor: int) -> NDArray[Scalar]:
    """Returns (h, w) or (h, w, C) with each pixel repeated ``factor`` times along both axes."""
    return image if factor == 1 else image.repeat(factor, 0).repeat(factor, 1)


@dataclass(frozen=True)
class ScaleBar:
    """A bar of a round length."""

    pixels: float  # length in the picture
    text: str


def scale_bar(metres_per_pixel: float, most: float) -> ScaleBar:
    """Returns the longest bar of 1, 2 or 5 times a power of ten metres that has at most ``most`` pixels."""
    longest = metres_per_pixel * most
    power = 10.0 ** floor(log10(longest))
    length = next(factor * power for factor in (5, 2, 1) if factor * power <= longest * (1 + 1e-9))
    for size, unit in ((1000, "km"), (1, "m"), (0.01, "cm")):
        if length >= size * (1 - 1e-9):
            return ScaleBar(length / metres_per_pixel, f"{length / size:g} {unit}")
    return ScaleBar(length / metres_per_pixel, f"{length:g} m")


def north_of(steps: Steps) -> tuple[float, float]:
    """Returns the direction of the north in a picture, (to the right, downwards), of length 1."""
    (right_east, right_north), (down_east, down_north) = steps
    area = right_east * down_north - right_north * down_east
    column, row = -down_east / area, right_east / area  # solves column * right + row * down = (0, 1)
    length = hypot(column, row)
    return column / length, row / length


def draw_scale(draw: ImageDraw, font: Font, bar: ScaleBar, end: tuple[float, float], unit: float) -> None:
    """Draws a scale bar, with its length before it, that ends at a point; ``unit``: half the width of its lines."""
    (right, middle), left, width = end, end[0] - bar.pixels, round(2 * unit)
    for x in (left, right):
        draw.line((x, middle - 4 * unit, x, middle + 4 * unit), INK, width)
    draw.line((left, middle, right, middle), INK, width)
    draw.text((left - 8 * unit, middle), bar.text, INK, font, anchor="rm")


def draw_north(
    draw: ImageDraw, font: Font, north: tuple[float, float], centre: tuple[float, float], unit: float
) -> None:
    """Draws an arrow to the north, of about 16 ``unit`` pixels, with an N at its tip."""
    angle = atan2(north[1], north[0])

    def at(distance: float, turn: float = 0) -> tuple[float, float]:
        distance *= unit
        return centre[0] + distance * cos(angle + turn), centre[1] + distance * sin(angle + turn)

    draw.polygon([at(7), at(10, 2.6), at(5, np.pi), at(10, -2.6)], INK)
    draw.text(at(15), "N", INK, font, anchor="mm")
