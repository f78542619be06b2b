"""How an image is covered with tiles: pure arithmetic, no files."""

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
        """This span as a slice into ``whole``, which it is a part of."""
        return slice(self.start - whole.start, self.stop - whole.start)

    def split(self, size: int) -> Iterator[Span]:
        """Neighbouring spans of ``size`` pixels, the last one what is left."""
        return (Span(start, min(start + size, self.stop)) for start in range(self.start, self.stop, size))


@dataclass(frozen=True)
class Cell:
    """One tile: the window that is read and the part of it that this tile answers for.

    The owned parts of all cells of an image cover it without overlap. A window reaches beyond the image
    only where the image is smaller than a tile; those pixels are padded by reflection.
    """

    rows: Span
    columns: Span
    owned_rows: Span
    owned_columns: Span

    def owned_in_tile(self) -> tuple[slice, slice]:
        """The owned part as slices into the tile."""
        return self.owned_rows.within(self.rows), self.owned_columns.within(self.columns)

    def owned_in_image(self) -> tuple[slice, slice]:
        """The owned part as slices into the image."""
        return (
            slice(self.owned_rows.start, self.owned_rows.stop),
            slice(self.owned_columns.start, self.owned_columns.stop),
        )


def cover(height: int, width: int, tile: int) -> list[Cell]:
    """Cells of ``tile`` x ``tile`` pixels over a ``height`` x ``width`` image, row by row.

    The last row and column are shifted inward, so that every window holds real pixels where it can.
    """
    if min(height, width, tile) < 1:
        raise ValueError(f"cannot cover {height} x {width} pixels with tiles of {tile}")
    return [
        Cell(rows, columns, owned_rows, owned_columns)
        for rows, owned_rows in _spans(height, tile)
        for columns, owned_columns in _spans(width, tile)
    ]


def cut(image: NDArray[Scalar], cell: Cell) -> NDArray[Scalar]:
    """The cell's window of (H, W) or (H, W, C); beyond the edge the image is reflected, again and again."""
    part = image[cell.rows.start : cell.rows.stop, cell.columns.start : cell.columns.stop]
    return reflect(part, cell.rows.length, cell.columns.length)


def reflect(part: NDArray[Scalar], height: int, width: int) -> NDArray[Scalar]:
    """(H, W) or (H, W, C), continued at its lower and right edge to ``height`` x ``width`` by reflection."""
    missing = [(0, height - part.shape[0]), (0, width - part.shape[1])]
    return np.pad(part, missing + [(0, 0)] * (part.ndim - 2), mode="symmetric")


def _spans(length: int, tile: int) -> list[tuple[Span, Span]]:
    """Windows along one axis, each with its owned part."""
    found = []
    for owned in Span(0, length).split(tile):
        start = max(0, min(owned.start, length - tile))
        found.append((Span(start, start + tile), owned))
    return found
