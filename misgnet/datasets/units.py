"""Defines the values that pass between the stages of preparation.

A unit, an image pair or a strip of the scene, is the smallest part that is finished and recorded as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from misgnet.datasets.record import Header
from misgnet_runtime.callables import Image, Mask


@dataclass(frozen=True)
class TilePixels:
    """The pixels of one tile before it is written."""

    split: str
    name: str  # of the file, without its suffix
    before: Image  # uint8 (T, T, 3)
    after: Image  # uint8 (T, T, 3)
    label: Mask  # bool (T, T)

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"


class Unit(Protocol):
    """An image pair, or a strip of the scene."""

    @property
    def key(self) -> str:
        """Returns the name of the unit in the record."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """Returns the source files of the unit, except for the rasters in the header."""

    def read(self) -> list[TilePixels]:
        """Returns the tiles of the unit in a fixed order; raises InputError with the name of a faulty file."""


@dataclass(frozen=True)
class Skipped:
    """An entry of the source that is not used."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is decided before the first tile is written."""

    header: Header
    units: tuple[Unit, ...]
    found: dict[str, int]  # number of image pairs, or of tiles drawn at random, by split
    official: dict[str, int] | None  # the published numbers
    skipped: tuple[Skipped, ...]
    rasters: dict[str, Path] = field(default_factory=dict)  # by role, as in the header
    edge_tiles: int = 0  # tiles at the edge of the scene, which are all in train
