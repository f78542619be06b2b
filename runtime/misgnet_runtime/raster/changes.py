"""Traces the changed areas of a scene over the whole raster, so that tile borders do not cut them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from misgnet_runtime.raster.geotiff import GDAL, load_library, load_rasterio, mapped, open_geotiff
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.raster.writer import CHANGED, Probabilities

_STRIP = 1024  # rows of probabilities in memory at once
_RADIUS, _FLATTENING = 6378137.0, 1 / 298.257223563  # WGS 84


@dataclass(frozen=True, kw_only=True)
class Change:
    """One changed area: pixels that share an edge."""

    outline: Any  # shapely polygon, in pixels
    pixels: int  # number of pixels
    area: float  # m²; pixels if the raster is not georeferenced
    probability: float = math.nan  # mean over the pixels
    maximum: float = math.nan  # highest of the pixels


@dataclass(frozen=True)
class Changes:
    """Changed areas of a scene, by descending area; equal ones from top to bottom and from left to right."""

    listed: list[Change]
    count: int  # of all areas, listed or not
    area: float  # of all areas together


def find_changes(
    change: Path, probabilities: Probabilities, grid: Grid, min_area: float = 0, most: int | None = None
) -> Changes:
    """Returns the changed areas of the raster ``change``.

    Args:
        change: The change raster.
        probabilities: The map that it was made from.
        grid: Its grid.
        min_area: Areas below it are left out, in m² (in pixels if the raster is not georeferenced).
        most: Number of areas to list (default: all); memory is needed only for these.

    Raises:
        UnavailableError: shapely is missing.
    """
    shapely, rasterio = load_library("shapely", "polygons of changed areas"), load_rasterio("a scene")
    count, area = 0, 0.0

    def counted() -> Iterator[Change]:
        nonlocal count, area
        for found in _traced(shapely, rasterio, change, grid):
            if found.area >= min_area:
                count += 1
                area += found.area
                yield found

    found = sorted(counted(), key=_order) if most is None else heapq.nsmallest(most, counted(), key=_order)
    return Changes([_with_probability(rasterio, one, probabilities) for one in found], count, area)


def check_libraries(*, vector: bool, report: bool) -> None:
    """Raises UnavailableError if a library that outputs need is missing; called before a run starts."""
    for name in ("pyogrio", "shapely") if vector else ("shapely",) if report else ():
        load_library(name, "--vector" if vector else "--report")


def _order(change: Change) -> tuple[float, float, float]:
    left, top, _, _ = change.outline.bounds
    return -change.area, top, left


def _traced(shapely: Any, rasterio: Any, change: Path, grid: Grid) -> Iterator[Change]:
    """Yields areas without probabilities. GDAL's map coordinates are converted back to whole pixel corners."""
    matrix, origin = affine(grid)
    inverse = np.linalg.inv(matrix)
    with rasterio.Env(**GDAL), open_geotiff(rasterio, change) as dataset:
        band = rasterio.band(dataset, 1)
        for shape, value in rasterio.features.shapes(band, mask=band, connectivity=4):
            if value == CHANGED:
                outline = shapely.geometry.shape(shape)
                if grid.has_transform:
                    outline = shapely.transform(outline, lambda points: np.rint((points - origin) @ inverse))
                pixels = round(outline.area)
                size = _pixel_area(grid, outline.centroid) if grid.georeferenced else 1.0
                yield Change(outline=outline, pixels=pixels, area=pixels * size)


def _with_probability(rasterio: Any, change: Change, probabilities: Probabilities) -> Change:
    left, top, right, bottom = (int(edge) for edge in change.outline.bounds)
    total, maximum = 0.0, 0.0
    for rows in Span(top, bottom).split(_STRIP):
        inside = rasterio.features.geometry_mask(
            [change.outline], (rows.length, right - left), rasterio.Affine.translation(left, rows.start), invert=True
        )
        values = probabilities.read(rows, Span(left, right))[inside]
        total += float(values.sum(dtype=np.float64))
        maximum = max(maximum, float(values.max(initial=0)))
    return replace(change, probability=total / change.pixels, maximum=maximum)


def _pixel_area(grid: Grid, centre: Any) -> float:
    """Returns the area of a pixel in m².

    In geographic coordinates on the ellipsoid, at the latitude of ``centre``; otherwise in the plane of the map.
    """
    t = grid.transform
    plane = abs(t.a * t.e - t.b * t.d)
    if not grid.crs.is_geographic:
        return float(plane * grid.crs.units_factor[1] ** 2)
    _, latitude = mapped(t, centre.x, centre.y)
    squared = _FLATTENING * (2 - _FLATTENING)
    bend = 1 - squared * math.sin(math.radians(latitude)) ** 2
    meridian, parallel = _RADIUS * (1 - squared) / bend**1.5, _RADIUS / bend**0.5
    return float(plane * math.radians(1) ** 2 * meridian * parallel * math.cos(math.radians(latitude)))


def affine(grid: Grid) -> tuple[Any, Any]:
    """Returns the matrix (2, 2) and the origin (2,) with which ``points @ matrix + origin`` are map coordinates."""
    t = grid.transform
    return np.array([[t.a, t.d], [t.b, t.e]]), np.array([t.c, t.f])
