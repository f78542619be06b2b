"""Strips of a scene: neighbouring tiles of one row of tiles, which are read, computed and written together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.raster.area.region import Region
from misgnet_runtime.raster.blending import Layout
from misgnet_runtime.raster.tiling import Span, reflect
from misgnet_runtime.raster.unreadable import UnreadableBlock


@dataclass(frozen=True)
class Strip:
    """Neighbouring tiles of one row of tiles."""

    layout: Layout
    row: int  # row of tiles in the layout
    tiles: range  # columns of tiles in the layout
    last: bool  # whether no later strip of this row follows

    @property
    def rows(self) -> Span:
        """The scene's rows that the tiles cover."""
        return self.layout.rows.window(self.row)

    @property
    def columns(self) -> Span:
        """The scene's columns that the tiles cover together."""
        axis = self.layout.columns
        return Span(axis.window(self.tiles[0]).start, axis.window(self.tiles[-1]).stop)

    @property
    def numbers(self) -> range:
        """Indices of the tiles among all tiles of the scene, counted row by row."""
        before = self.row * len(self.layout.columns.starts)
        return range(before + self.tiles.start, before + self.tiles.stop)

    def part(self, tile: int) -> slice:
        """Returns the strip's columns that one of its tiles covers."""
        return self.layout.columns.window(tile).within(self.columns)

    def stack(self, image: Image, tiles: Sequence[int]) -> Image:
        """Returns some of the tiles, (B, T, T, C), cut from the strip's pixels, (h, w, C).

        A scene smaller than a tile is extended by reflection.
        """
        tile, channels = self.layout.columns.tile, image.shape[2]
        stacked = np.empty((len(tiles), tile, tile, channels), image.dtype)
        for index, column in enumerate(tiles):
            part = image[:, self.part(column)]
            if part.shape[:2] != (tile, tile):
                part = reflect(part, tile, tile)
            # Images are read channel by channel; one copy of all channels takes four times as long.
            for channel in range(channels):
                stacked[index, ..., channel] = part[..., channel]
        return stacked


@dataclass(frozen=True)
class Reading:
    """A strip that was read."""

    strip: Strip
    valid: Mask  # pixels with data, bool (h, w)
    unreadable: frozenset[UnreadableBlock]

    @cached_property
    def tiles(self) -> tuple[int, ...]:
        """Columns of the tiles that have data."""
        return tuple(tile for tile in self.strip.tiles if self.valid[:, self.strip.part(tile)].any())


def strips(layout: Layout, batch: int, first: int = 0, region: Region | None = None) -> Iterator[Strip]:
    """Yields a scene's strips of at most ``batch`` tiles, starting at row of tiles ``first``.

    They contain all tiles, or those that touch ``region``; a row of tiles may have none.
    """
    for row in range(first, len(layout.rows.starts)):
        tiles = range(len(layout.columns.starts)) if region is None else region.tiles(layout, row)
        found = list(_runs(tiles, batch))
        for index, run in enumerate(found, 1):
            yield Strip(layout, row, run, index == len(found))


def _runs(tiles: Sequence[int], most: int) -> Iterator[range]:
    """Yields the neighbours among ascending numbers, at most ``most`` at once."""
    begin = 0
    for end in range(1, len(tiles) + 1):
        if end == len(tiles) or tiles[end] != tiles[end - 1] + 1 or end - begin == most:
            yield range(tiles[begin], tiles[end - 1] + 1)
            begin = end
