"""Writes a small picture of a scene: before, after, and after with the change, with labels, legend, scale and north."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path

import PIL.Image
from PIL import ImageDraw, ImageFont

from misgnet_runtime.callables import Image
from misgnet_runtime.formatting import printable
from misgnet_runtime.raster.display import displayed
from misgnet_runtime.raster.drawing import (
    INK,
    SOFT,
    Font,
    draw_north,
    draw_scale,
    enlarged,
    hatched,
    marked,
    north_of,
    scale_bar,
    swatches,
)
from misgnet_runtime.raster.overview import Overview
from misgnet_runtime.raster.resolution import Steps

MOST_PIXELS = 1024  # longest side of each date in the picture
_LEAST_PIXELS = 256  # longest side up to which small scenes are enlarged
_LETTERS = 640  # longest side of a panel above which texts grow with it
_NARROWEST = 300  # width of a panel that its texts need
_MARGIN, _GAP, _HEAD, _LINE = 16, 20, 48, 36  # around the picture, between panels, above them, of the legend
_WIDE = 2.0  # width by height from which on panels are stacked


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Texts in the picture, and the directions on the ground."""

    names: tuple[str, str]  # of both files
    dates: tuple[str, str]  # when the images were taken; empty: unknown
    change: str  # the changed share
    steps: Steps | None  # of the scene's pixels; None: it is not georeferenced


@dataclass(frozen=True)
class _Panel:
    title: str
    name: str
    image: Image  # 8-bit RGB


def write_quicklook(path: Path, overview: Overview, labels: Labels) -> None:
    """Writes a PNG of three panels: both dates, and the later one with the change outlined and filled in red.

    Areas without data are hatched; see :class:`misgnet_runtime.raster.display.Stretch` for the colours of 16-bit
    images. Panels of a wide scene are stacked. Raises OSError if writing fails.
    """
    factor = max(1, _LEAST_PIXELS // max(overview.valid.shape))
    valid, changed = (enlarged(mask, factor) for mask in (overview.valid, overview.changed))
    dates = displayed(overview.before, overview.after, overview.valid)
    before, after = (hatched(enlarged(image, factor), valid) for image in dates)
    found = marked(after, changed, 1 if max(valid.shape) < MOST_PIXELS // 2 else 2)
    titles = [", ".join(filter(None, parts)) for parts in zip(("Before", "After"), labels.dates, strict=True)]
    panels = [_Panel(*one) for one in zip(titles, labels.names, (before, after), strict=True)]
    panels.append(_Panel("Change", labels.change, found))
    metres = None if labels.steps is None else hypot(*labels.steps[0]) * overview.step / factor
    sheet = _Sheet(max(1.0, max(valid.shape) / _LETTERS), labels.steps, metres, bool(valid.all()))
    sheet.compose(panels).save(path, format="PNG")


@dataclass(frozen=True)
class _Sheet:
    """The paper that panels are put on."""

    unit: float  # pixels for each of the constants above
    steps: Steps | None
    metres: float | None  # on the ground, to the next column of the picture
    all_valid: bool

    def compose(self, panels: Sequence[_Panel]) -> PIL.Image.Image:
        """Puts panels of equal size beside or below each other."""
        height, width, _ = panels[0].image.shape
        cell = max(width, self._px(_NARROWEST)), height + self._px(_HEAD)
        across, down = (1, len(panels)) if width >= _WIDE * height else (len(panels), 1)
        margin, gap = self._px(_MARGIN), self._px(_GAP)
        inner, below = (n * size + (n - 1) * gap for n, size in zip((across, down), cell, strict=True))
        legend = self._legend(inner)
        size = inner + 2 * margin, below + 2 * margin + legend.height
        picture = PIL.Image.new("RGB", size, "white")
        for index, panel in enumerate(panels):
            row, column = divmod(index, across)
            self._draw(picture, panel, (margin + column * (cell[0] + gap), margin + row * (cell[1] + gap)), cell[0])
        picture.paste(legend, (margin, margin + below))
        return picture

    def _px(self, size: float) -> int:
        return round(size * self.unit)

    def _font(self, size: float) -> Font:
        return ImageFont.load_default(size * self.unit)

    def _draw(self, picture: PIL.Image.Image, panel: _Panel, place: tuple[int, int], width: int) -> None:
        draw, (left, top) = ImageDraw.Draw(picture), place
        for text, colour, size, middle in ((panel.title, INK, 18, 12), (panel.name, SOFT, 14, 33)):
            font = self._font(size)
            draw.text((left, top + self._px(middle)), _fitted(draw, font, text, width), colour, font, anchor="lm")
        picture.paste(PIL.Image.fromarray(panel.image), (left, top + self._px(_HEAD)))

    def _legend(self, width: int) -> PIL.Image.Image:
        """Returns the legend, with scale bar and north on the right, or below it if there is no room."""
        font, line, left, rows = self._font(14), self._px(_LINE), 0.0, 1
        picture = PIL.Image.new("RGB", (width, 2 * line), "white")
        draw = ImageDraw.Draw(picture)
        for swatch, text in swatches(self.unit)[: 1 if self.all_valid else 2]:
            picture.paste(PIL.Image.fromarray(swatch), (round(left), (line - swatch.shape[0]) // 2 + self._px(4)))
            left += swatch.shape[1] + self._px(8)
            draw.text((left, line / 2 + self._px(4)), text, INK, font, anchor="lm")
            left += draw.textlength(text, font) + self._px(24)
        if self.steps is not None and self.metres is not None:
            bar = scale_bar(self.metres, min(self._px(240), width / 2))
            needed = bar.pixels + draw.textlength(bar.text, font) + self._px(64)
            rows = 1 if left + needed <= width else 2
            right, middle = width if rows == 1 else needed, (rows - 0.5) * line + self._px(4)
            draw_north(draw, font, north_of(self.steps), (right - self._px(20), middle), self.unit)
            draw_scale(draw, font, bar, (right - self._px(48), middle), self.unit)
        return picture.crop((0, 0, width, rows * line))


def _fitted(draw: ImageDraw.ImageDraw, font: Font, text: str, width: float) -> str:
    """Returns a text that fits: the middle of a longer one is left out."""
    shown = text = printable(text)
    kept = len(text)
    while kept > 2 and draw.textlength(shown, font) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return shown
