"""Strips of a scene: neighbouring tiles of one row of tiles, which are read, computed and written together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.raster.blending import Layout
from misgnet_runtime.raster.tiling import Span, reflect
from misgnet_runtime.raster.unreadable import UnreadableBlock


@dataclass(frozen=True)
class Strip:
    """Neighbouring tiles of one row of tiles."""

    layout: Layout
    row: int  # row of tiles in the layout
    tiles: range  # columns of tiles in the layout

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

    @property
    def last(self) -> bool:
        """Whether this is the last strip of its row."""
        return self.tiles.stop == len(self.layout.columns.starts)

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


def strips(layout: Layout, batch: int, first: int = 0) -> Iterator[Strip]:
    """Yields a scene's strips of at most ``batch`` tiles, starting at row of tiles ``first``."""
    count = len(layout.columns.starts)
    for row in range(first, len(layout.rows.starts)):
        for begin in range(0, count, batch):
            yield Strip(layout, row, range(begin, min(begin + batch, count)))
