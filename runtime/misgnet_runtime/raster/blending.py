"""Lays out overlapping tiles over a scene and blends their predictions into one map; pure arithmetic, no files.

A pixel's weight is the product of a row weight and a column weight, each normalised along its axis. The sum of weights
over a whole scene is therefore never needed, and each row of tiles completes the rows that the next one does not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.limits import GEOTIFF_MAP_BYTES, GEOTIFF_SIDE
from misgnet_runtime.raster.tiling import Scalar, Span, reflect

MOST_SIDE = GEOTIFF_SIDE  # pixels
MOST_MAP_BYTES = GEOTIFF_MAP_BYTES  # of a map's unfinished rows: the height of a tile times the width of the scene
_PIXEL_BYTES = 5  # of an unfinished pixel: the sum of probabilities (4) and the validity (1)


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis of a scene, aligned to a grid of tiles that covers the whole world.

    The first and the last tile are shifted inward if the grid would place them beyond the scene.
    """

    length: int  # pixels of the scene
    tile: int  # pixels of a tile
    overlap: int  # pixels that neighbouring tiles share
    anchor: int = 0  # a pixel at which a tile of the grid starts

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first pixel of each tile, ascending; (0,) if the scene is not longer than a tile."""
        last, stride = self.length - self.tile, self.tile - self.overlap
        if last <= 0:
            return (0,)
        return 0, *range(self.anchor % stride or stride, last, stride), last

    def window(self, index: int) -> Span:
        """Returns the pixels of the scene that a tile covers; fewer than ``tile`` if the scene is smaller."""
        return Span(self.starts[index], min(self.starts[index] + self.tile, self.length))

    def finished(self, index: int) -> Span:
        """Returns the pixels that this tile completes: no later tile covers them."""
        following = self.starts[index + 1] if index + 1 < len(self.starts) else self.length
        return Span(self.starts[index], following)

    def first_reaching(self, pixel: int) -> int:
        """Returns the first tile that covers ``pixel`` or a later pixel."""
        return next(index for index, start in enumerate(self.starts) if start + self.tile > pixel)

    def weights(self) -> NDArray[np.float32]:
        """Returns a Hann window for each tile, float32 (tiles, T); the weights of each pixel sum to 1.

        A tile off the grid has full weight only at pixels that no other tile covers, and fades out over the next
        ``overlap`` pixels. Predictions further from the scene's edge thus do not depend on where the scene was cut.
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
    """The tiles of a scene: all combinations of rows and columns."""

    rows: Axis
    columns: Axis

    def tiles(self) -> Iterator[Place]:
        """Yields the place of each tile, row by row."""
        indices = product(range(len(self.rows.starts)), range(len(self.columns.starts)))
        return (Place(self, row, column) for row, column in indices)


@dataclass(frozen=True)
class Place:
    """The place of one tile in a layout."""

    layout: Layout
    row: int  # row of tiles
    column: int  # column of tiles

    @property
    def ends_row(self) -> bool:
        """Whether this is the last tile of its row."""
        return self.column == len(self.layout.columns.starts) - 1

    @property
    def last(self) -> bool:
        """Whether this is the last tile of the layout."""
        return self.ends_row and self.row == len(self.layout.rows.starts) - 1

    def cut(self, image: NDArray[Scalar]) -> NDArray[Scalar]:
        """Returns the tile's pixels of (H, W) or (H, W, C); an image smaller than a tile is extended by reflection."""
        rows, columns = self.layout.rows.window(self.row), self.layout.columns.window(self.column)
        part = image[rows.start : rows.stop, columns.start : columns.stop]
        return reflect(part, self.layout.rows.tile, self.layout.columns.tile)


def lay_out(height: int, width: int, tile: int, overlap: int, anchor: tuple[int, int] = (0, 0)) -> Layout:
    """Returns the tiles over ``height`` x ``width`` pixels, on a grid through the pixel ``anchor``, (row, column).

    Raises:
        UsageError: Not 0 <= ``overlap`` <= 3/4 ``tile``.
        InputError: A side is too long, or a row of tiles does not fit into memory.
    """
    if not 0 <= overlap <= 3 * tile // 4:
        raise UsageError(f"--overlap is {overlap}; it must be from 0 to 3/4 of a tile, here {3 * tile // 4} px")
    unfinished = min(tile, height) * width * _PIXEL_BYTES
    if max(height, width) > MOST_SIDE or unfinished > MOST_MAP_BYTES:
        raise InputError(
            f"the scene has {width:,} x {height:,} px, and a row of its tiles takes {unfinished >> 20:,} MiB; the "
            f"limits are {MOST_SIDE:,} px per side and {MOST_MAP_BYTES >> 20:,} MiB: cut it into parts"
        )
    return Layout(Axis(height, tile, overlap, anchor[0]), Axis(width, tile, overlap, anchor[1]))


class Blender:
    """Accumulates predictions of tiles; holds only unfinished rows of the map (a tile's height, the scene's width).

    Rows of tiles must be added in order; the tiles of a row in any order.
    """

    def __init__(self, layout: Layout, first: int = 0) -> None:
        """Starts at row ``first`` of the layout's tiles."""
        self._layout = layout
        self._weights = layout.rows.weights(), layout.columns.weights()
        self._sums = np.zeros((min(layout.rows.tile, layout.rows.length), layout.columns.length), np.float32)
        self._row = first

    def add(self, column: int, prediction: NDArray[np.float32]) -> None:
        """Adds a tile of the current row, float32 (T, T); pixels beyond the scene are ignored."""
        rows, columns = self._layout.rows.window(self._row), self._layout.columns.window(column)
        weighted = prediction * self._weights[0][self._row][:, None] * self._weights[1][column]
        self._sums[: rows.length, columns.start : columns.stop] += weighted[: rows.length, : columns.length]

    @contextmanager
    def finish(self) -> Iterator[NDArray[np.float32]]:
        """Ends the current row of tiles; yields the completed rows of the map, float32 (h, W), valid in the block."""
        count = self._layout.rows.finished(self._row).length
        yield self._sums[:count]  # not a copy, which would take up to three quarters of the memory again
        self._sums[:-count] = self._sums[count:]
        self._sums[-count:] = 0
        self._row += 1


class RowBlender:
    """Blends the tiles of a layout in the order of :meth:`Layout.tiles` and passes on each band of completed rows.

    ``take`` receives the rows' position and their values, float32 (h, W), valid only during the call.
    """

    def __init__(self, layout: Layout, take: Callable[[Span, NDArray[np.float32]], None]) -> None:
        self._blender = Blender(layout)
        self._take = take

    def add(self, place: Place, prediction: NDArray[np.float32]) -> None:
        """Adds the prediction of a tile, float32 (T, T)."""
        self._blender.add(place.column, prediction)
        if place.ends_row:
            with self._blender.finish() as rows:
                self._take(place.layout.rows.finished(place.row), rows)
