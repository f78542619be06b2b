"""Computes the grid of tiles of a scene and assigns the tiles to splits.

Tiles are assigned at random, so no two tiles may share a pixel: they form a regular grid, and tiles that extend
beyond the scene are padded. Tiles that are mostly padding always belong to train, so that validation and test tiles
contain almost no reflected pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import PCG64

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.tiling import Span

Edges = Literal["keep", "drop"]
SPLITS = ("train", "val", "test")
MOST_TILES = 1 << 22  # limit because a file header may declare any size; WHU-CD has 7,680 tiles


@dataclass(frozen=True)
class GridCell:
    """One tile of the grid: the part of it that is inside the scene, in pixels of the scene."""

    rows: Span
    columns: Span

    def is_edge(self, tile: int) -> bool:
        """Returns whether less than half of the tile is inside the scene."""
        return 2 * self.rows.length * self.columns.length < tile * tile


@dataclass(frozen=True)
class AssignedCell:
    """A cell with its split."""

    cell: GridCell
    split: str
    is_edge: bool


def grid(height: int, width: int, tile: int) -> list[GridCell]:
    """Returns ceil(H / T) x ceil(W / T) disjoint cells that cover the scene, in row-major order.

    Raises InputError if there are more than ``MOST_TILES``.
    """
    if min(height, width, tile) < 1:
        raise ValueError(f"cannot make a grid of {tile} pixels for {height} x {width} pixels; all must be at least 1")
    count = -(-height // tile) * -(-width // tile)
    if count > MOST_TILES:
        raise InputError(
            f"a scene of {width} x {height} px has {count:,} tiles of {tile} px; the limit is {MOST_TILES:,}; choose a "
            "larger --tile, or cut the scene into parts"
        )
    return [GridCell(r, c) for r in _spans(height, tile) for c in _spans(width, tile)]


def counts(drawn: int) -> dict[str, int]:
    """Returns the number of tiles by split: a tenth each for val and test (ties round to even), the rest for train."""
    tenth = round(drawn / 10)
    return {"train": drawn - 2 * tenth, "val": tenth, "test": tenth}


def assign_splits(cells: Sequence[GridCell], tile: int, seed: int, edges: Edges) -> list[AssignedCell]:
    """Assigns each cell to a split, in the order of ``cells``; edge cells are omitted if ``edges`` is "drop".

    Every cell that is not at the edge gets a random number of PCG64, seeded with ``seed`` (not negative). The cells
    with the smallest numbers go to train, the next to val and the largest to test.
    """
    inner = [i for i, cell in enumerate(cells) if not cell.is_edge(tile)]
    share = counts(len(inner))
    names = [name for name, count in share.items() for _ in range(count)]
    # NumPy guarantees the bits of PCG64 across versions, but not the results of Generator.permutation.
    order = np.argsort(PCG64(seed).random_raw(len(inner)), kind="stable")
    drawn = {inner[position]: name for position, name in zip(order.tolist(), names, strict=True)}
    return [
        AssignedCell(cell, drawn.get(i, "train"), i not in drawn)
        for i, cell in enumerate(cells)
        if i in drawn or edges == "keep"
    ]


def _spans(length: int, tile: int) -> list[Span]:
    return list(Span(0, length).split(tile))
