"""Reads both dates and their change at a reduced size, in bounded memory, for pictures of a scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.raster.reader import Pair
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.raster.writer import CHANGED

# Bytes of one date's samples that are read at once; reading a warped raster row by row is slow.
_AT_ONCE = 8 << 20
_WIDTH = 8192  # columns that are read at once


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A window of a scene at a reduced size of h x w pixels, each of ``step`` x ``step`` pixels of the scene."""

    rows: Span  # of the scene
    columns: Span
    step: int
    # Means of the valid pixels, (h, w, C); 0 where there are none.
    before: Image
    after: Image
    valid: Mask  # bool (h, w): at least one pixel is valid
    changed: Mask  # bool (h, w): at least one pixel is changed

    def reduced(self, most: int) -> Overview:
        """Returns it with at most ``most`` pixels on its longer side."""
        rows, columns = (Span(0, length) for length in self.valid.shape)
        step = step_for(rows, columns, most)
        if step == 1:
            return self
        count = _summed(self.valid, rows, rows, step)
        dates = []
        for image in (self.before, self.after):
            total = [_summed(band, rows, rows, step) for band in np.moveaxis(image * self.valid[..., None], 2, 0)]
            dates.append(_means(np.stack(total, 2), count).astype(image.dtype))
        changed = _summed(self.changed, rows, rows, step) > 0
        return replace(
            self, step=self.step * step, before=dates[0], after=dates[1], valid=count > 0, changed=changed
        )  # fmt: skip


@dataclass(frozen=True)
class SceneReader:
    """Reads overviews of a scene: of both dates, and of their change raster, which is open."""

    pair: Pair
    scalings: tuple[Scaling, Scaling]
    change: Any  # rasterio's dataset

    def fitting(self, rows: Span, columns: Span, most: int) -> Overview:
        """Reads a window, with at most ``most`` pixels on its longer side."""
        return self.read(rows, columns, step_for(rows, columns, most))

    def read(self, rows: Span, columns: Span, step: int) -> Overview:
        """Reads a window; the blocks of ``step`` x ``step`` pixels at its lower and right edges may be smaller."""
        deep = max(1, _AT_ONCE // (min(columns.length, _WIDTH) * self.pair.before.pixels.bytes))
        parts = [self._rows(span, columns, step, deep) for span in rows.split(max(1, deep // step) * step)]
        before, after, valid, changed = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Overview(
            rows=rows, columns=columns, step=step, before=before, after=after, valid=valid, changed=changed
        )  # fmt: skip

    def _rows(self, rows: Span, columns: Span, step: int, deep: int) -> tuple[Image, Image, Mask, Mask]:
        """Reads rows of blocks, at most ``deep`` rows of pixels at once."""
        form = self.pair.before.pixels
        if step == 1:
            return self._pixels(rows, columns)
        shape = -(-rows.length // step), -(-columns.length // step)
        sums = [np.zeros((*shape, form.bands), np.uint64) for _ in range(2)]
        count, changed = np.zeros(shape, np.uint64), np.zeros(shape, np.bool_)
        for part_rows, part_columns in _windows(rows, columns, step, deep):
            pixels = self.pair.read(self.scalings, part_rows, part_columns)
            where = _blocks(part_rows, rows, step), _blocks(part_columns, columns, step)
            for total, image in zip(sums, (pixels.before, pixels.after), strict=True):
                for band in range(form.bands):
                    total[(*where, band)] += _summed(image[..., band] * pixels.valid, part_rows, rows, step)
            count[where] += _summed(pixels.valid, part_rows, rows, step)
            changed[where] |= _summed(self._changed(part_rows, part_columns), part_rows, rows, step) > 0
        before, after = (_means(total, count).astype(form.samples) for total in sums)
        return before, after, count > 0, changed

    def _pixels(self, rows: Span, columns: Span) -> tuple[Image, Image, Mask, Mask]:
        pixels = self.pair.read(self.scalings, rows, columns)
        before, after = (image * pixels.valid[..., None] for image in (pixels.before, pixels.after))
        return before, after, pixels.valid, self._changed(rows, columns)

    def _changed(self, rows: Span, columns: Span) -> Mask:
        window = (rows.start, rows.stop), (columns.start, columns.stop)
        return np.asarray(self.change.read(1, window=window) == CHANGED)


def step_for(rows: Span, columns: Span, most: int) -> int:
    """Returns the side of the blocks with which a window has at most ``most`` pixels on its longer side."""
    return max(1, -(-max(rows.length, columns.length) // most))


def _windows(rows: Span, columns: Span, step: int, deep: int) -> Iterator[tuple[Span, Span]]:
    """Yields windows of at most ``deep`` rows that begin and end between columns of blocks."""
    for part_columns in columns.split(max(1, _WIDTH // step) * step):
        for part_rows in rows.split(deep if step > deep else rows.length):
            yield part_rows, part_columns


def _blocks(part: Span, whole: Span, step: int) -> slice:
    """Returns the blocks of ``whole`` that overlap ``part``."""
    inside = part.within(whole)
    return slice(inside.start // step, -(-inside.stop // step))


def _means(total: NDArray[np.uint64], count: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns rounded means of sums (h, w, C) over a number of pixels (h, w); 0 where there are none."""
    counted = np.maximum(count, 1)[..., None]
    return np.asarray((total + counted // 2) // counted)


def _summed(values: NDArray[Any], rows: Span, whole: Span, step: int) -> NDArray[np.uint64]:
    """Sums (h, w) over blocks; ``rows`` of the scene's ``whole`` may begin within a block, columns do not."""
    across = np.add.reduceat(values, np.arange(0, values.shape[1], step), axis=1, dtype=np.uint64)
    first = rows.start - whole.start
    starts = np.unique(np.maximum(np.arange(first // step, -(-(first + rows.length) // step)) * step - first, 0))
    return np.asarray(np.add.reduceat(across, starts, axis=0, dtype=np.uint64))
