"""Finds the pixels of a date in unreadable blocks, and checks their share against ``--max-unreadable``.

A block is unreadable if it is not within the file, if its offset or length is 0 (if the raster declares a nodata value,
such a block is nodata instead), or if it does not decode. The first two are known from the file's directories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Mask
from misgnet_runtime.errors import UnreadableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.source import RasterFile
from misgnet_runtime.raster.tiff_blocks import Layer, TiffBlocks, blocks_of
from misgnet_runtime.raster.tiling import Span

# A block that does not decode: date ("before" or "after"), first row, first column, height, width; in pixels of that
# date's own raster.
UnreadableBlock = tuple[str, int, int, int, int]
# The content of a window: stored values (B, h, w), their validity, bool (h, w), and blocks that do not decode.
Values = tuple[NDArray[Any], Mask, frozenset[UnreadableBlock]]
_MOST_CELLS = 1 << 26  # limit of the intersections of blocks of different sizes, to compute their union
_AT_ONCE = 1 << 18  # blocks counted at once
_ROUNDING = 1 + 1e-12  # for limits that are not binary fractions: 0.7 percent of 1000 pixels are 7


@dataclass(frozen=True)
class _Flagged:
    """Blocks of one size, some of them flagged."""

    height: int  # pixels
    width: int  # pixels
    flags: Mask  # bool (R, C), by block

    def at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Mask:
        """Returns the flags of the pixels at all combinations of ``rows`` and ``columns``."""
        return np.asarray(self.flags[np.ix_(rows // self.height, columns // self.width)], np.bool_)

    def area(self, rows: Span, columns: Span) -> int:
        """Returns the number of pixels of a window in flagged blocks."""
        left, right = columns.start // self.width, -(-columns.stop // self.width)
        widths = _within(left, right, self.width, columns)
        step = max(1, _AT_ONCE // len(widths))
        total = 0
        for blocks in Span(rows.start // self.height, -(-rows.stop // self.height)).split(step):
            flags = self.flags[blocks.start : blocks.stop, left:right]
            total += int((flags @ widths) @ _within(blocks.start, blocks.stop, self.height, rows))
        return total


@dataclass(frozen=True)
class Blocks:
    """The blocks of one raster, from its directories."""

    source: RasterFile
    tiff: TiffBlocks
    nodata: bool  # whether a nodata value is declared

    @classmethod
    def of(cls, source: RasterFile, *, nodata: bool) -> Blocks:
        """Reads the blocks of a raster; raises as :func:`read_blocks`."""
        with source.open() as file:
            return cls(source, blocks_of(file, source, positions=source.fetches), nodata)

    @property
    def named(self) -> str:
        """Names the file for a message about its unreadable blocks."""
        return str(self.source)

    @property
    def pixels(self) -> int:
        return self.tiff.height * self.tiff.width

    @property
    def count(self) -> int:
        """The number of blocks of the image and its masks, in all planes."""
        return sum(layer.absent.size for layer in self._layers)

    @property
    def nodata_blocks(self) -> int:
        """The number of the image's absent blocks, if the raster declares a nodata value; else 0."""
        return int(self.tiff.image.absent.sum()) if self.nodata else 0

    @cached_property
    def has_gaps(self) -> bool:
        """Whether any block is unreadable, or absent and nodata."""
        return any(layer.absent.any() or layer.outside.any() for layer in self._layers)

    @cached_property
    def unreadable(self) -> tuple[int, int]:
        """The number of unreadable blocks, and of the pixels in them; each pixel is counted once."""
        blocks = sum(int(self._is_unreadable(layer).sum()) for layer in self._layers)
        whole = Span(0, self.tiff.height), Span(0, self.tiff.width)
        return blocks, self.unreadable_in(*whole) if blocks else 0

    def unreadable_in(self, rows: Span, columns: Span) -> int:
        """Returns the number of unreadable pixels of a window. Cost grows with its blocks, not with its pixels.

        If image and masks have blocks of different sizes, and very many, they are counted separately (an upper bound).
        """
        if len(self._unreadable) <= 1:
            return sum(flagged.area(rows, columns) for flagged in self._unreadable)
        edges = self._edges(rows, 0), self._edges(columns, 1)
        if len(edges[0]) * len(edges[1]) > _MOST_CELLS:
            apart = sum(flagged.area(rows, columns) for flagged in self._unreadable)
            return min(apart, rows.length * columns.length)
        heights, widths = (np.diff(found, append=span.stop) for found, span in zip(edges, (rows, columns), strict=True))
        covered = np.logical_or.reduce([flagged.at(*edges) for flagged in self._unreadable])
        return int((covered @ widths) @ heights)

    def gaps(self, bands: Iterable[int], rows: Span, columns: Span) -> Mask | None:
        """Returns the pixels of a window, bool (h, w), that lack a value in one of ``bands`` (from 1), or None."""
        if not self.has_gaps:
            return None
        planes = [band - 1 for band in bands] if self.tiff.planes > 1 else [0]
        absent = [_flagged(self.tiff.image, self.tiff.image.absent[planes])]
        absent += [_flagged(mask, mask.absent) for mask in self.tiff.masks]
        pixels = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        found: Mask = np.logical_or.reduce([flagged.at(*pixels) for flagged in (*absent, *self._unreadable)])
        return found

    def blocks(self, date: str) -> list[UnreadableBlock]:
        """Returns the unreadable blocks that the directories show, with their positions."""
        found = []
        for flagged in self._unreadable:
            for row, column in np.argwhere(flagged.flags):
                top, left = int(row) * flagged.height, int(column) * flagged.width
                bottom, right = min(top + flagged.height, self.tiff.height), min(left + flagged.width, self.tiff.width)
                found.append((date, top, left, bottom - top, right - left))
        return found

    @property
    def _layers(self) -> tuple[Layer, ...]:
        return (self.tiff.image, *self.tiff.masks)

    @cached_property
    def _unreadable(self) -> list[_Flagged]:
        """The unreadable blocks, merged by size."""
        return _merged(_flagged(layer, self._is_unreadable(layer)) for layer in self._layers)

    def _is_unreadable(self, layer: Layer) -> NDArray[np.bool_]:
        """Returns the unreadable blocks of a layer.

        An absent block of a mask is readable and hides all its pixels: GDAL does not write such blocks.
        """
        absent_is_nodata = self.nodata or layer is not self.tiff.image
        return layer.outside if absent_is_nodata else layer.outside | layer.absent

    def _edges(self, span: Span, axis: int) -> NDArray[np.int64]:
        """Returns the start of ``span``, and of each block within it."""
        sizes = [(flagged.height, flagged.width)[axis] for flagged in self._unreadable]
        found = [np.arange(-(-span.start // size) * size, span.stop, size) for size in sizes]
        return np.unique(np.concatenate([np.array([span.start]), *found]))


@dataclass(frozen=True, kw_only=True)
class StackedBlocks(Blocks):
    """The blocks of several files of one size, read as the bands of one raster; each pixel is counted once."""

    parts: tuple[Blocks, ...]  # of the files

    @property
    def named(self) -> str:
        return ", ".join(part.named for part in self.parts if part.unreadable[0]) or super().named

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def nodata_blocks(self) -> int:
        return sum(part.nodata_blocks for part in self.parts)

    @cached_property
    def has_gaps(self) -> bool:
        return any(part.has_gaps for part in self.parts)

    @cached_property
    def unreadable(self) -> tuple[int, int]:
        blocks = sum(part.unreadable[0] for part in self.parts)
        whole = Span(0, self.tiff.height), Span(0, self.tiff.width)
        return blocks, self.unreadable_in(*whole) if blocks else 0

    @cached_property
    def _unreadable(self) -> list[_Flagged]:
        return _merged(flagged for part in self.parts for flagged in part._unreadable)


def _merged(found: Iterable[_Flagged]) -> list[_Flagged]:
    """Returns the flagged blocks, merged by size."""
    by_size: dict[tuple[int, int], _Flagged] = {}
    for flagged in found:
        if flagged.flags.any():
            size = flagged.height, flagged.width
            other = by_size.get(size)
            by_size[size] = _Flagged(*size, flagged.flags | other.flags) if other else flagged
    return list(by_size.values())


def _within(first: int, stop: int, size: int, span: Span) -> NDArray[np.int64]:
    """Returns how many pixels of a span are in each of the blocks from ``first`` to ``stop``."""
    begins = np.arange(first, stop) * size
    return np.minimum(begins + size, span.stop) - np.maximum(begins, span.start)


def _flagged(layer: Layer, planes: NDArray[np.bool_]) -> _Flagged:
    """Flags the blocks of a layer that are set in any of ``planes``, bool (P, R, C)."""
    return _Flagged(layer.block_height, layer.block_width, np.asarray(planes.any(axis=0), np.bool_))


class Tally:
    """Counts the unreadable blocks of both dates of a run against a limit in percent. Not thread-safe."""

    def __init__(self, dates: Mapping[str, Blocks], limit: float, found: Iterable[UnreadableBlock] = ()) -> None:
        self._dates, self._limit = dates, limit
        self._found: set[UnreadableBlock] = set()
        self._blocks = {date: blocks.unreadable[0] for date, blocks in dates.items()}
        self._pixels = {date: blocks.unreadable[1] for date, blocks in dates.items()}
        self.add(found)

    @property
    def unread(self) -> tuple[int, int]:
        """The number of unreadable blocks and pixels, of both dates together."""
        return sum(self._blocks.values()), sum(self._pixels.values())

    def share(self, date: str) -> float:
        """Returns the unreadable share of a date's pixels, 0 to 1."""
        return self._pixels[date] / self._dates[date].pixels

    def add(self, found: Iterable[UnreadableBlock]) -> None:
        """Counts blocks that do not decode, each once; raises UnreadableError above the limit."""
        for block in set(found) - self._found:
            self._found.add(block)
            date, row, column, height, width = block
            known = self._dates[date].unreadable_in(Span(row, row + height), Span(column, column + width))
            if known < height * width:
                self._blocks[date] += 1
                self._pixels[date] += height * width - known
        for date in self._dates:
            # Multiplied, not divided: the rounding of 7 / 100 would make 7 of 100 pixels exceed 7 percent.
            if 100 * self._pixels[date] > self._limit * self._dates[date].pixels * _ROUNDING:
                raise UnreadableError(self._refusal(date))

    def warnings(self) -> list[str]:
        """Returns one warning per date with unreadable blocks."""
        return [f"{self._summary(date)}; they are nodata in the map" for date in self._dates if self._blocks[date]]

    def _refusal(self, date: str) -> str:
        percent = 100 * self.share(date)
        return (
            f"{self._summary(date)}, and {self._limit:g} % are allowed: the file is truncated, unfinished or damaged; "
            f"fetch it again, or allow them with --max-unreadable {min(100, int(percent) + 1)}"
        )

    def _summary(self, date: str) -> str:
        percent = f"{100 * self.share(date):.3g} %" if self.share(date) > 5e-5 else "less than 0.01 %"
        count = plural(self._blocks[date], "unreadable block")
        return f"the {date} raster {self._dates[date].named} has {count} ({percent} of its pixels)"
