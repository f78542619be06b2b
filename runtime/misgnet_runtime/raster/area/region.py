"""The part of a map that is computed: which tiles and pixels polygons cover. Pure geometry, in pixels of the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Mask
from misgnet_runtime.raster.blending import Layout
from misgnet_runtime.raster.geotiff import load_library, load_rasterio
from misgnet_runtime.raster.tiling import Span

_ROWS = 1_024  # rows whose pixels are counted at once


@dataclass(frozen=True, eq=False)
class Outlines:
    """Polygons in pixels of a map: x is the column and y the row; a pixel's centre is at half its number."""

    polygons: NDArray[Any]  # shapely's, (N,)

    @cached_property
    def _tree(self) -> Any:
        return load_library("shapely", "--aoi").STRtree(self.polygons)

    def touch(self, rows: Span, columns: Sequence[Span]) -> Mask:
        """Returns which of N windows, of equal rows, a polygon touches: bool (N,)."""
        shapely = load_library("shapely", "--aoi")
        starts, stops = (np.array([getattr(span, end) for span in columns], float) for end in ("start", "stop"))
        boxes = shapely.box(starts, rows.start, stops, rows.stop)
        found = np.zeros(len(columns), np.bool_)
        found[self._tree.query(boxes, predicate="intersects")[0]] = True
        return found

    def mask(self, rows: Span, columns: Span) -> Mask:
        """Returns the pixels of a window whose centre is inside of a polygon, bool (h, w)."""
        rasterio, shapely = load_rasterio("--aoi"), load_library("shapely", "--aoi")
        size, corner = (rows.length, columns.length), rasterio.Affine.translation(columns.start, rows.start)
        box = shapely.box(columns.start, rows.start, columns.stop, rows.stop)
        polygons = self._tree.query(box)
        if not len(polygons):
            return np.zeros(size, np.bool_)
        found: Mask = rasterio.features.geometry_mask(self.polygons[np.sort(polygons)], size, corner, invert=True)
        return found

    def window(self, height: int, width: int) -> tuple[Span, Span]:
        """Returns the rows and columns of a map of that size around all polygons."""
        left, top, right, bottom = load_library("shapely", "--aoi").total_bounds(self.polygons)
        return _clipped(top, bottom, height), _clipped(left, right, width)


@dataclass(frozen=True, eq=False)
class Region:
    """The part of a map that is computed."""

    area: Outlines | None  # area of interest; None: the whole map
    overlap: Outlines | None  # what both dates may cover, slightly larger; None: the whole map

    def tiles(self, layout: Layout, row: int) -> list[int]:
        """Returns the columns of the tiles of a row of tiles that touch the region."""
        windows = [layout.columns.window(column) for column in range(len(layout.columns.starts))]
        touched = np.ones(len(windows), np.bool_)
        for outlines in (self.area, self.overlap):
            if outlines is not None:
                touched &= outlines.touch(layout.rows.window(row), windows)
        return [int(column) for column in np.flatnonzero(touched)]

    def clip(self, valid: Mask, rows: Span) -> Mask:
        """Returns the pixels among ``valid``, bool (h, W), of some rows of the map, that belong to the area."""
        return valid if self.area is None else valid & self.area.mask(rows, Span(0, valid.shape[1]))


def count_pixels(outlines: Outlines, height: int, width: int) -> int:
    """Returns how many pixels of a map of that size have their centre inside of a polygon."""
    rows, columns = outlines.window(height, width)
    return sum(int(np.count_nonzero(outlines.mask(part, columns))) for part in rows.split(_ROWS))


def _clipped(low: float, high: float, length: int) -> Span:
    start = int(np.clip(np.floor(low), 0, length))
    return Span(start, max(start, int(np.clip(np.ceil(high), 0, length))))
