"""Overlapping tiles over a scene, and how their answers become one map: pure arithmetic, no files.

Weights are products of one weight for the row and one for the column, so they are normalised along each axis alone:
the sums of a whole scene are never needed, and a row of tiles finishes the rows that the next one does not reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.limits import GEOTIFF_MAP_BYTES, GEOTIFF_SIDE
from misgnet_runtime.raster.tiling import Span

MOST_SIDE = GEOTIFF_SIDE  # pixels
MOST_MAP_BYTES = GEOTIFF_MAP_BYTES  # of the rows of a map that are not finished: a tile's height of its width
_PIXEL_BYTES = 5  # of an unfinished pixel: its sum of probabilities, and whether it is valid


@dataclass(frozen=True)
class Axis:
    """Tiles of ``tile`` pixels along one axis of ``length`` pixels.

    They begin where a grid of tiles over the whole world does, ``overlap`` pixels before the end of the one before;
    the grid goes through pixel ``anchor`` of the axis. At both ends a tile is shifted inward where the grid needs it.
    """

    length: int
    tile: int
    overlap: int
    anchor: int = 0

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first pixel of each tile, ascending; 0 alone where the axis is no longer than a tile."""
        last, stride = self.length - self.tile, self.tile - self.overlap
        if last <= 0:
            return (0,)
        return 0, *range(self.anchor % stride or stride, last, stride), last

    def window(self, index: int) -> Span:
        """The pixels of the scene that a tile sees; fewer than a tile's where the scene is smaller than one."""
        return Span(self.starts[index], min(self.starts[index] + self.tile, self.length))

    def finished(self, index: int) -> Span:
        """The pixels that no later tile reaches, and that the tile before did not finish."""
        following = self.starts[index + 1] if index + 1 < len(self.starts) else self.length
        return Span(self.starts[index], following)

    def first_reaching(self, pixel: int) -> int:
        """The first tile that sees ``pixel``, or one behind it."""
        return next(index for index, start in enumerate(self.starts) if start + self.tile > pixel)

    def weights(self) -> NDArray[np.float32]:
        """float32 (tiles, T): a Hann window for each tile; those that meet in a pixel sum to 1.

        A tile off the grid counts only where no other one sees, and fades over ``overlap`` pixels beside that: what
        lies further from the scene's edge does not depend on where the scene was cut.
        """
        windows = [self._window(index) for index in range(len(self.starts))]
        total = np.zeros(max(self.length, self.tile))
        for start, window in zip(self.starts, windows, strict=True):
            total[start : start + self.tile] += window
        return np.stack([
            window / total[start : start + self.tile] for start, window in zip(self.starts, windows, strict=True)
        ]).astype(np.float32)  # fmt: skip

    def _window(self, index: int) -> NDArray[np.float64]:
        pixels = np.arange(self.tile) + 0.5
        hann = np.sin(np.pi * pixels / self.tile) ** 2
        if len(self.starts) <= 2 or (self.starts[index] - self.anchor) % (self.tile - self.overlap) == 0:
            return hann
        beside = pixels - self.starts[1] if index == 0 else self.starts[-2] + self.tile - self.starts[-1] - pixels
        return np.asarray(np.cos(np.pi / 2 * np.clip(beside / max(self.overlap, 0.5), 0, 1)) ** 2)


@dataclass(frozen=True)
class Layout:
    """The tiles of a scene: every row with every column."""

    rows: Axis
    columns: Axis


def lay_out(height: int, width: int, tile: int, overlap: int, anchor: tuple[int, int] = (0, 0)) -> Layout:
    """Tiles over ``height`` x ``width`` pixels, on a grid through the pixel ``anchor``, (row, column).

    Raises:
        UsageError: Not 0 <= ``overlap`` <= 3/4 ``tile``.
        InputError: The scene is too long, or too wide for a row of tiles in memory.
    """
    if not 0 <= overlap <= 3 * tile // 4:
        raise UsageError(f"--overlap is {overlap}; it is from 0 to 3/4 of a tile, here {3 * tile // 4} px")
    unfinished = min(tile, height) * width * _PIXEL_BYTES
    if max(height, width) > MOST_SIDE or unfinished > MOST_MAP_BYTES:
        raise InputError(
            f"the scene has {width:,} x {height:,} px, and a row of its tiles takes {unfinished >> 20:,} MiB; the most "
            f"are {MOST_SIDE:,} px along a side, and {MOST_MAP_BYTES >> 20:,} MiB: cut it into parts"
        )
    return Layout(Axis(height, tile, overlap, anchor[0]), Axis(width, tile, overlap, anchor[1]))


class Blender:
    """The map's unfinished rows, summed up tile by tile; holds a tile's height of the scene's width.

    Rows of tiles come in order, from ``first`` on; the tiles of one row in any order.
    """

    def __init__(self, layout: Layout, first: int = 0) -> None:
        self._layout = layout
        self._weights = layout.rows.weights(), layout.columns.weights()
        self._sums = np.zeros((min(layout.rows.tile, layout.rows.length), layout.columns.length), np.float32)
        self._row = first

    def add(self, column: int, answer: NDArray[np.float32]) -> None:
        """Add a tile of the current row, float32 (T, T); what lies beyond the scene is left out."""
        rows, columns = self._layout.rows.window(self._row), self._layout.columns.window(column)
        weighted = answer * self._weights[0][self._row][:, None] * self._weights[1][column]
        self._sums[: rows.length, columns.start : columns.stop] += weighted[: rows.length, : columns.length]

    @contextmanager
    def finish(self) -> Iterator[NDArray[np.float32]]:
        """End the current row of tiles: within the block, the rows of the map that are finished, float32 (h, W)."""
        count = self._layout.rows.finished(self._row).length
        yield self._sums[:count]  # no copy: that would be three quarters of the memory again
        self._sums[:-count] = self._sums[count:]
        self._sums[-count:] = 0
        self._row += 1
