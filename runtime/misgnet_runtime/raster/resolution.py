"""Compares a raster's resolution on the ground with that of the pixels that a network was trained on."""

from __future__ import annotations

from math import cos, hypot, isfinite, pi, sin, sqrt
from typing import Any

from misgnet_runtime.raster.geotiff import mapped
from misgnet_runtime.raster.grid import Grid

_MOST = 2.02  # factor between two resolutions that needs no warning; 1 % for the scale of a map projection
_AXIS, _ECCENTRICITY_SQUARED = 6_378_137.0, 0.00669437999014  # WGS 84: semi-major axis in metres, e squared


def ground_resolution(rasterio: Any, grid: Grid) -> float | None:
    """Returns the geometric mean of the sides of the grid's centre pixel on the ground, in metres.

    The sides are transformed to longitude and latitude, so that units and the distortion of the projection
    (Web Mercator's factor is 2 at 60 degrees) do not matter. Returns None if the grid is not georeferenced, or its
    coordinate system has no place on the Earth.
    """
    if not grid.georeferenced:
        return None
    column, row = grid.width / 2, grid.height / 2
    corners = [mapped(grid.transform, *corner) for corner in ((column, row), (column + 1, row), (column, row + 1))]
    try:
        places = rasterio.warp.transform(grid.crs, "EPSG:4326", *map(list, zip(*corners, strict=True)))
    except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError):  # the latter are PROJ's errors
        return None
    centre, right, below = zip(*places, strict=True)
    found = sqrt(ground_distance(centre, right) * ground_distance(centre, below))
    return found if isfinite(found) and found > 0 else None


def ground_distance(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Returns the distance in metres of two near points, (longitude, latitude) in degrees, on the ellipsoid WGS 84.

    Uses the radii of curvature along the meridian and across it at the first point. Snyder, "Map Projections: A Working
    Manual", 1987, equations 4-18 and 4-20.
    """
    latitude = first[1] * pi / 180
    flattened = 1 - _ECCENTRICITY_SQUARED * sin(latitude) ** 2
    meridian = _AXIS * (1 - _ECCENTRICITY_SQUARED) / flattened**1.5
    parallel = _AXIS / sqrt(flattened) * cos(latitude)
    east, north = (second[0] - first[0] + 180) % 360 - 180, second[1] - first[1]
    return hypot(parallel * east, meridian * north) * pi / 180


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
