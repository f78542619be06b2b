"""What the stages hand to each other. A unit is the least that is finished, and recorded, as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from misgnet.datasets.record import Header
from misgnet_runtime.callables import Mask, RgbImage


@dataclass(frozen=True)
class TilePixels:
    """One tile before it is written: uint8 (T, T, 3) of both dates and the label, bool (T, T)."""

    split: str
    name: str  # of the file, without its suffix
    before: RgbImage
    after: RgbImage
    label: Mask

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"


class Unit(Protocol):
    """An image pair, or a strip of the scene."""

    @property
    def key(self) -> str:
        """What the record calls it."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that it is made of, other than the header's rasters."""

    def read(self) -> list[TilePixels]:
        """Its tiles, always the same ones in the same order. InputError names the file that is at fault."""


@dataclass(frozen=True)
class Skipped:
    """Something found in the source that no tile is made of."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is decided before the first tile is written."""

    header: Header
    units: tuple[Unit, ...]
    found: dict[str, int]  # image pairs, or tiles drawn, of each split
    official: dict[str, int] | None  # the published counts of the same
    skipped: tuple[Skipped, ...]
    rasters: dict[str, Path] = field(default_factory=dict)  # by the header's roles
    edge_tiles: int = 0  # of the scene, not drawn: all in train
