"""Covers an image with tiles; pure arithmetic, no files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Span:
    """Rows or columns from ``start`` to ``stop``, in pixels of the image."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def within(self, whole: Span) -> slice:
        """Returns this span as a slice into ``whole``, which contains it."""
        return slice(self.start - whole.start, self.stop - whole.start)

    def moved(self, distance: int) -> Span:
        """Returns this span, ``distance`` pixels further."""
        return Span(self.start + distance, self.stop + distance)

    def common(self, other: Span) -> Span:
        """Returns the part that is in both spans; its length is 0 if there is none."""
        start = max(self.start, other.start)
        return Span(start, max(start, min(self.stop, other.stop)))

    def split(self, size: int) -> Iterator[Span]:
        """Yields adjacent spans of ``size`` pixels; the last one may be shorter."""
        return (Span(start, min(start + size, self.stop)) for start in range(self.start, self.stop, size))


@dataclass(frozen=True)
class Cell:
    """One tile: the window that is read, and the part of it whose predictions come from this tile.

    The owned parts of all cells cover an image without overlap. A window extends beyond the image only if the image is
    smaller than a tile; those pixels are padded by reflection.
    """

    rows: Span
    columns: Span
    owned_rows: Span
    owned_columns: Span

    def owned_in_tile(self) -> tuple[slice, slice]:
        """Returns the owned part as slices into the tile."""
        return self.owned_rows.within(self.rows), self.owned_columns.within(self.columns)

    def owned_in_image(self) -> tuple[slice, slice]:
        """Returns the owned part as slices into the image."""
        return (
            slice(self.owned_rows.start, self.owned_rows.stop),
            slice(self.owned_columns.start, self.owned_columns.stop),
        )


def cover(height: int, width: int, tile: int) -> list[Cell]:
    """Returns cells of ``tile`` x ``tile`` pixels that cover a ``height`` x ``width`` image, row by row.

    The last row and column are shifted inward, so that windows contain padding only if the image is too small.
    """
    if min(height, width, tile) < 1:
        raise ValueError(f"cannot cover {height} x {width} pixels with tiles of {tile}")
    return [
        Cell(rows, columns, owned_rows, owned_columns)
        for rows, owned_rows in _spans(height, tile)
        for columns, owned_columns in _spans(width, tile)
    ]


def cut(image: NDArray[Scalar], cell: Cell) -> NDArray[Scalar]:
    """Returns the cell's window of (H, W) or (H, W, C); beyond its edges the image is reflected repeatedly."""
    part = image[cell.rows.start : cell.rows.stop, cell.columns.start : cell.columns.stop]
    return reflect(part, cell.rows.length, cell.columns.length)


def reflect(part: NDArray[Scalar], height: int, width: int) -> NDArray[Scalar]:
    """Pads (H, W) or (H, W, C) at its lower and right edges to ``height`` x ``width`` by reflection."""
    missing = [(0, height - part.shape[0]), (0, width - part.shape[1])]
    return np.pad(part, missing + [(0, 0)] * (part.ndim - 2), mode="symmetric")


def _spans(length: int, tile: int) -> list[tuple[Span, Span]]:
    """Returns the windows along one axis, each with its owned part."""
    found = []
    for owned in Span(0, length).split(tile):
        start = max(0, min(owned.start, length - tile))
        found.append((Span(start, start + tile), owned))
    return found
