"""Compares a raster's resolution on the ground with that of the pixels that a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, isfinite, pi, sin, sqrt
from typing import Any

from misgnet_runtime.raster.geotiff import mapped
from misgnet_runtime.raster.grid import Grid

# Metres to the east and to the north of one step to the next column of a grid, and of one to the next row.
Steps = tuple[tuple[float, float], tuple[float, float]]
_MOST = 2.02  # factor between two resolutions that needs no warning; 1 % for the scale of a map projection
_AXIS, _ECCENTRICITY_SQUARED = 6_378_137.0, 0.00669437999014  # WGS 84: semi-major axis in metres, e squared


def ground_resolution(rasterio: Any, grid: Grid) -> float | None:
    """Returns the geometric mean of the sides of the grid's centre pixel on the ground, in metres.

    Returns None if the grid is not georeferenced, or its coordinate system has no place on the Earth.
    """
    steps = ground_steps(rasterio, grid)
    return None if steps is None else sqrt(hypot(*steps[0]) * hypot(*steps[1]))


def ground_steps(rasterio: Any, grid: Grid) -> Steps | None:
    """Returns the steps on the ground from the grid's centre to the next column and to the next row.

    The pixel's corners are transformed to longitude and latitude, so
    that units and the distortion of the projection (Web Mercator's factor is 2 at 60 degrees) do not matter. Returns
    None if the grid is not georeferenced, or its coordinate system has no place on the Earth.
    """
    column, row = grid.width / 2, grid.height / 2
    places = longitudes_latitudes(rasterio, grid, [(column, row), (column + 1, row), (column, row + 1)])
    if places is None:
        return None
    centre, right, below = places
    steps = ground_step(centre, right), ground_step(centre, below)
    return steps if all(isfinite(hypot(*step)) and hypot(*step) > 0 for step in steps) else None


def longitudes_latitudes(
    rasterio: Any, grid: Grid, points: Sequence[tuple[float, float]]
) -> list[tuple[float, float]] | None:
    """Converts points of a grid, (column, row) in pixels, to longitude and latitude in degrees.

    Returns None if the grid is not georeferenced, or its coordinate system has no place on the Earth.
    """
    if not grid.georeferenced or not points:
        return None
    there = [mapped(grid.transform, *point) for point in points]
    try:
        found = rasterio.warp.transform(grid.crs, "EPSG:4326", *map(list, zip(*there, strict=True)))
    except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError):  # the latter are PROJ's errors
        return None
    return list(zip(*found, strict=True))


def ground_distance(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Returns the distance in metres of two near points, (longitude, latitude) in degrees, as :func:`ground_step`."""
    return hypot(*ground_step(first, second))


def ground_step(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Returns the metres to the east and to the north between two near points, on the ellipsoid WGS 84.

    The points are (longitude, latitude) in degrees.

    Uses the radii of curvature along the meridian and across it at the first point. Snyder, "Map Projections: A Working
    Manual", 1987, equations 4-18 and 4-20.
    """
    latitude = first[1] * pi / 180
    flattened = 1 - _ECCENTRICITY_SQUARED * sin(latitude) ** 2
    meridian = _AXIS * (1 - _ECCENTRICITY_SQUARED) / flattened**1.5
    parallel = _AXIS / sqrt(flattened) * cos(latitude)
    east, north = (second[0] - first[0] + 180) % 360 - 180, second[1] - first[1]
    return parallel * east * pi / 180, meridian * north * pi / 180


def resolution_warning(found: float | None, trained: float | None, name: str) -> str | None:
    """Returns a warning if two resolutions in metres per pixel differ by more than a factor of 2; else None.

    Args:
        found: The raster's resolution; None: not known.
        trained: Resolution of the training data; None: not declared.
        name: The raster's name.
    """
    if found is None or trained is None or max(found / trained, trained / found) <= _MOST:
        return None
    return (
        f"{name} has {found:.3g} m per pixel, but the network was trained on {trained:.3g} m per pixel; expect wrong "
        "predictions, or resample both dates first: gdalwarp -tr"
    )
