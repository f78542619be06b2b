"""How a scene is cut and which tile belongs to which split: pure arithmetic, no files.

Tiles are drawn at random, so none may share a pixel with another. They lie on a plain grid, and what reaches
beyond the scene is padded; tiles that are mostly padding are not drawn and belong to train, so that the sets
that judge hold next to no mirrored pixels.
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
MOST_TILES = 1 << 22  # a header may declare anything; 7,680 are usual


@dataclass(frozen=True)
class GridCell:
    """One tile of the grid: the real part of its window, in pixels of the scene."""

    rows: Span
    columns: Span

    def is_edge(self, tile: int) -> bool:
        """Whether less than half of it is scene."""
        return 2 * self.rows.length * self.columns.length < tile * tile


@dataclass(frozen=True)
class PlacedCell:
    """A cell and the split that it belongs to."""

    cell: GridCell
    split: str
    is_edge: bool


def grid(height: int, width: int, tile: int) -> list[GridCell]:
    """ceil(H / T) x ceil(W / T) cells that share no pixel and cover the scene, row by row.

    InputError where they are more than a computer should be asked for.
    """
    if min(height, width, tile) < 1:
        raise ValueError(f"cannot lay a grid of {tile} over {height} x {width} pixels")
    count = -(-height // tile) * -(-width // tile)
    if count > MOST_TILES:
        raise InputError(
            f"a scene of {width} x {height} px is {count:,} tiles of {tile}, and {MOST_TILES:,} are the most; "
            "choose a larger --tile, or cut the scene into parts"
        )
    return [GridCell(r, c) for r in _spans(height, tile) for c in _spans(width, tile)]


def counts(drawn: int) -> dict[str, int]:
    """Tiles of each split: a tenth for val and for test, rounded to the nearest (ties to even), the rest to train."""
    tenth = round(drawn / 10)
    return {"train": drawn - 2 * tenth, "val": tenth, "test": tenth}


def place(cells: Sequence[GridCell], tile: int, seed: int, edges: Edges) -> list[PlacedCell]:
    """Each cell with its split, in the order of ``cells``; edge cells are left out where ``edges`` is "drop".

    Each drawn cell gets a number of PCG64, seeded with ``seed`` (not negative), and the smallest are train's.
    """
    inner = [i for i, cell in enumerate(cells) if not cell.is_edge(tile)]
    share = counts(len(inner))
    names = [name for name, count in share.items() for _ in range(count)]
    # numpy promises the bits of PCG64 for all its versions, and promises nothing of Generator.permutation
    order = np.argsort(PCG64(seed).random_raw(len(inner)), kind="stable")
    drawn = {inner[position]: name for position, name in zip(order.tolist(), names, strict=True)}
    return [
        PlacedCell(cell, drawn.get(i, "train"), i not in drawn)
        for i, cell in enumerate(cells)
        if i in drawn or edges == "keep"
    ]


def _spans(length: int, tile: int) -> list[Span]:
    return list(Span(0, length).split(tile))
