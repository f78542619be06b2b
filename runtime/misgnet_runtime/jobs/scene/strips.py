"""What is read, computed and written at once: neighbouring tiles of one row of a scene's tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from misgnet_runtime.callables import Mask, RgbImage
from misgnet_runtime.raster.blending import Layout
from misgnet_runtime.raster.tiling import Span, reflect
from misgnet_runtime.raster.unreadable import UnreadableBlock


@dataclass(frozen=True)
class Strip:
    """Where neighbouring tiles lie: the columns ``tiles`` of the layout's ``row``."""

    layout: Layout
    row: int
    tiles: range

    @property
    def rows(self) -> Span:
        """The scene's rows that the tiles see."""
        return self.layout.rows.window(self.row)

    @property
    def columns(self) -> Span:
        """The scene's columns that they see together."""
        axis = self.layout.columns
        return Span(axis.window(self.tiles[0]).start, axis.window(self.tiles[-1]).stop)

    @property
    def numbers(self) -> range:
        """The tiles' places among all of the scene, row by row."""
        before = self.row * len(self.layout.columns.starts)
        return range(before + self.tiles.start, before + self.tiles.stop)

    @property
    def last(self) -> bool:
        """Whether the strip ends its row."""
        return self.tiles.stop == len(self.layout.columns.starts)

    def part(self, tile: int) -> slice:
        """The strip's columns that one of its tiles sees."""
        return self.layout.columns.window(tile).within(self.columns)

    def stack(self, image: RgbImage, tiles: Sequence[int]) -> RgbImage:
        """Some of its tiles, uint8 (B, T, T, 3), of its pixels (h, w, 3); a scene smaller than a tile is reflected."""
        tile = self.layout.columns.tile
        stacked = np.empty((len(tiles), tile, tile, 3), np.uint8)
        for index, column in enumerate(tiles):
            stacked[index] = reflect(image[:, self.part(column)], tile, tile)
        return stacked


@dataclass(frozen=True)
class Reading:
    """A strip that was read: where it has data, bool (h, w), and the blocks that cannot be read."""

    strip: Strip
    valid: Mask
    unreadable: frozenset[UnreadableBlock]

    @cached_property
    def tiles(self) -> tuple[int, ...]:
        """The columns of the tiles that have data."""
        return tuple(tile for tile in self.strip.tiles if self.valid[:, self.strip.part(tile)].any())


def strips(layout: Layout, batch: int, first: int = 0) -> Iterator[Strip]:
    """A scene's strips of at most ``batch`` tiles, from a row of tiles on."""
    count = len(layout.columns.starts)
    for row in range(first, len(layout.rows.starts)):
        for begin in range(0, count, batch):
            yield Strip(layout, row, range(begin, min(begin + batch, count)))
