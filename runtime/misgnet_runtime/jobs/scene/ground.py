"""Finds the ground that a map covers: the area of interest, and what both dates cover."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from misgnet_runtime.raster.area.area_file import AreaOfInterest, read_area
from misgnet_runtime.raster.area.placement import place_area, place_raster
from misgnet_runtime.raster.area.region import Outlines, Region, count_pixels
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.reader import Pair
from misgnet_runtime.raster.tiling import Span


@dataclass(frozen=True, eq=False)
class Ground:
    """The ground that a map covers."""

    grid: Grid | None = None  # of the map
    area: AreaOfInterest | None = None
    placed: Outlines | None = None  # the area in pixels
    overlap: Outlines | None = None  # what both dates may cover; None: everything

    @property
    def region(self) -> Region | None:
        """What is computed; None: everything."""
        return Region(self.placed, self.overlap) if self.placed or self.overlap else None

    @cached_property
    def pixels(self) -> int | None:
        """Pixels of the area; None: there is no area."""
        return count_pixels(self.placed, self.grid.height, self.grid.width) if self.placed and self.grid else None

    def shared(self, grid: Grid) -> tuple[Span, Span]:
        """Returns the rows and columns that both dates may cover."""
        if self.overlap is None:
            return Span(0, grid.height), Span(0, grid.width)
        return self.overlap.window(grid.height, grid.width)


WHOLE = Ground()


def find_ground(pair: Pair, aoi: Path | None) -> Ground:
    """Returns the ground of an open pair, limited to the area in the file ``aoi``, if any.

    Raises InputError as :func:`read_area` and :func:`place_area`.
    """
    area = read_area(aoi) if aoi else None
    overlap = place_raster(Grid.of(pair.after.source.dataset), pair.grid) if pair.after.source else None
    return Ground(pair.grid, area, place_area(area, pair.grid) if area else None, overlap)
