"""Warps a raster onto another grid: with GDAL's warped raster, or, if blocks are missing, window by window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

import numpy as np

from misgnet_runtime.raster.geotiff import load_rasterio, mapped
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.raster.unreadable import Values

_POINTS = 22  # points along each edge of a window that are transformed to find the window in the source
_MOST_BYTES = 64 << 20  # of source pixels read at once
_WHOLE = 0.999  # share of a pixel's bilinear weights that must be on valid pixels
Read = Callable[[Span, Span], Values]


# Coordinate system of rasters that have none. Both have the same one, so nothing is projected.
_LOCAL = 'LOCAL_CS["pixels",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'


def warped(rasterio: Any, dataset: Any, grids: tuple[Grid, Grid], nodata: float | None, *, add_alpha: bool) -> Any:
    """Returns a raster warped onto another grid, bilinear. One thread: GDAL before 3.12.1 warps wrongly with more.

    Args:
        rasterio: The library.
        dataset: An open raster.
        grids: Its grid, which may be moved against what the file states, and the grid to warp onto. Both have a
            coordinate system, or neither.
        nodata: The raster's nodata value, which the file itself need not state.
        add_alpha: Mark pixels that the raster does not cover, if it has no nodata value; five times slower.
    """
    source, grid = grids
    stated = {} if nodata is None else {"src_nodata": nodata, "nodata": nodata}
    return rasterio.vrt.WarpedVRT(
        dataset, src_crs=_system(rasterio, source), src_transform=source.transform, crs=_system(rasterio, grid),
        transform=grid.transform, width=grid.width, height=grid.height, num_threads=1,
        resampling=rasterio.enums.Resampling.bilinear, add_alpha=add_alpha, **stated,
    )  # fmt: skip


def moved(rasterio: Any, source: Grid, grid: Grid, rows: float, columns: float) -> Grid:
    """Returns the grid of a raster, moved back so that an offset of its content on ``grid`` in pixels disappears."""
    t = grid.transform
    east, north = t.a * columns + t.b * rows, t.d * columns + t.e * rows
    if source.crs != grid.crs:  # the offset at the centre of the map
        x, y = mapped(t, grid.width / 2, grid.height / 2)
        eastings, northings = rasterio.warp.transform(grid.crs, source.crs, [x, x + east], [y, y + north])
        east, north = eastings[1] - eastings[0], northings[1] - northings[0]
    own = source.transform
    return replace(source, transform=rasterio.Affine(own.a, own.b, own.c - east, own.d, own.e, own.f - north))


def _system(rasterio: Any, grid: Grid) -> Any:
    return rasterio.crs.CRS.from_wkt(_LOCAL) if grid.crs is None else grid.crs


@dataclass(frozen=True)
class Warping:
    """Warps windows of a raster onto another grid; bilinear."""

    read: Read  # reads a window of ``source``
    source: Grid  # of the raster, which may be moved against what its file states
    target: Grid  # the grid to warp onto
    dtype: str  # of the values
    count: int  # number of bands that ``read`` returns

    def window(self, rows: Span, columns: Span) -> Values:
        """Returns a window of the target's grid.

        A pixel is valid only if all source pixels that it is interpolated from are valid.
        """
        rasterio, source, target = load_rasterio("a scene"), self.source, self.target
        window = source_window(rasterio, source, target, rows, columns)
        size = window[0].length * window[1].length * self.count * np.dtype(self.dtype).itemsize if window else 0
        if size > _MOST_BYTES and max(rows.length, columns.length) > 1:
            return self._halves(rows, columns)
        values = np.zeros((self.count, rows.length, columns.length), self.dtype)
        weights = np.zeros(values.shape[1:], np.float32)
        if window is None:
            return values, weights > 0, frozenset()
        stored, valid, unreadable = self.read(*window)
        stored = np.where(valid, stored, 0).astype(stored.dtype)
        for given, made in ((stored, values), (valid.astype(np.float32), weights)):
            rasterio.warp.reproject(
                given, made, src_crs=_system(rasterio, source), dst_crs=_system(rasterio, target),
                src_transform=_transform(rasterio, source, *window),
                dst_transform=_transform(rasterio, target, rows, columns), num_threads=1,
                resampling=rasterio.enums.Resampling.bilinear,
            )  # fmt: skip
        return values, weights > _WHOLE, unreadable

    def _halves(self, rows: Span, columns: Span) -> Values:
        """Returns a window computed in two halves, because its source is too large to be read at once."""
        if rows.length >= columns.length:
            parts, axis = [(part, columns) for part in rows.split(ceil(rows.length / 2))], 0
        else:
            parts, axis = [(rows, part) for part in columns.split(ceil(columns.length / 2))], 1
        found = [self.window(*part) for part in parts]
        values = np.concatenate([part[0] for part in found], axis + 1)
        return values, np.concatenate([part[1] for part in found], axis), found[0][2] | found[1][2]


def source_window(rasterio: Any, source: Grid, target: Grid, rows: Span, columns: Span) -> tuple[Span, Span] | None:
    """Returns the rows and columns of ``source`` that a window of ``target`` is interpolated from.

    Returns None if the source does not cover the window.
    """
    across, down = (np.linspace(span.start, span.stop, _POINTS) for span in (columns, rows))
    edge = [(x, y) for x in across for y in (rows.start, rows.stop)]
    edge += [(x, y) for x in (columns.start, columns.stop) for y in down]
    eastings, northings = zip(*(mapped(target.transform, x, y) for x, y in edge), strict=True)
    there = eastings, northings
    if source.crs != target.crs:
        there = rasterio.warp.transform(target.crs, source.crs, list(eastings), list(northings))
    points = np.array([mapped(~source.transform, x, y) for x, y in zip(*there, strict=True)])
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    found = []
    for axis, limit, span in ((1, source.height, rows), (0, source.width, columns)):
        reach = 2 + ceil(2 * max(1.0, (high[axis] - low[axis]) / span.length))
        start, stop = max(0, floor(low[axis]) - reach), min(limit, ceil(high[axis]) + reach)
        if start >= stop:
            return None
        found.append(Span(start, stop))
    return found[0], found[1]


def _transform(rasterio: Any, grid: Grid, rows: Span, columns: Span) -> Any:
    window = rasterio.windows.Window(columns.start, rows.start, columns.length, rows.length)
    return rasterio.windows.transform(window, grid.transform)
