"""Places polygons and rasters on the grid of a map: converts their outlines to its pixels."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.area.area_file import AreaOfInterest
from misgnet_runtime.raster.area.region import Outlines, count_pixels
from misgnet_runtime.raster.geotiff import load_library, load_rasterio, mapped
from misgnet_runtime.raster.grid import Grid

_POINTS = 4_096  # along all outlines together, at least: straight lines of one projection are curves in another
_MARGIN = 0.05  # of the scene's extent, around it, in which polygons are converted
_REACH = 2.0  # pixels around a raster that interpolation may reach, in addition to one of its own

_Box = tuple[float, float, float, float]  # west, south, east, north


def place_area(area: AreaOfInterest, grid: Grid) -> Outlines:
    """Returns the polygons of an area in pixels of ``grid``.

    Edges are straight in the area's own coordinate system, and are densified before they are transformed. Polygons of
    longitude and latitude may be cut at the antimeridian, as RFC 7946 requires.

    Raises:
        InputError: The grid is not georeferenced, the area cannot be transformed to it, or it covers the centre of no
            pixel.
    """
    if not grid.georeferenced:
        raise InputError(
            f"area {area.path} has coordinates on the ground, but the scene is {grid}; use georeferenced rasters, or "
            "crop both dates to the area instead"
        )
    extent, shapely = _extent(area, grid), load_library("shapely", "--aoi")
    try:
        near = _near(shapely, area, extent)
        if grid.crs != area.crs and len(near):
            near = shapely.segmentize(near, float(shapely.length(near).sum()) / _POINTS)
        placed = Outlines(shapely.transform(near, lambda points: _in_pixels(points, area.crs, grid)))
    except (shapely.errors.ShapelyError, *_projection_errors()) as error:
        raise InputError(f"area {area.path} cannot be transformed to the scene, {grid}: {error}") from error
    known = len(near) and np.isfinite(shapely.bounds(placed.polygons)).all()
    if not known or not count_pixels(placed, grid.height, grid.width):
        raise _no_overlap(shapely, area, extent)
    return placed


def place_raster(source: Grid, grid: Grid) -> Outlines | None:
    """Returns the outline of a georeferenced raster in pixels of ``grid``, slightly enlarged; None: it covers all."""
    shapely = load_library("shapely", "--align")
    steps = np.linspace(0, 1, _POINTS // 4, endpoint=False)[:, None]
    corners = np.array([(0, 0), (source.width, 0), (source.width, source.height), (0, source.height)], np.float64)
    edges = [start + (stop - start) * steps for start, stop in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    eastings, northings = mapped(source.transform, *np.concatenate(edges).T)
    points = _in_pixels(np.column_stack([eastings, northings]), source.crs, grid)
    if not np.isfinite(points).all():  # beyond the projection: its tiles are found empty when they are read
        return None
    sides = np.hypot(*np.diff(points, axis=0, append=points[:1]).T).reshape(4, -1).sum(axis=1)
    pixel = float((sides / (source.width, source.height, source.width, source.height)).max())
    outline = shapely.make_valid(shapely.polygons(points)).buffer(_REACH + pixel)
    covered = outline.contains(shapely.box(0, 0, grid.width, grid.height))
    return None if covered else Outlines(np.array([outline], object))


def _extent(area: AreaOfInterest, grid: Grid) -> _Box:
    """Returns the extent of a grid in the area's coordinate system; east may be beyond 180 degrees."""
    rasterio = load_rasterio("--aoi")
    try:
        west, south, east, north = rasterio.warp.transform_bounds(grid.crs, area.crs, *grid.bounds)
    except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:  # the latter are PROJ's errors
        raise InputError(
            f"the scene, {grid}, cannot be transformed to {_name(area)} of {area.path}: {error}"
        ) from error
    return west, south, east + 360 if area.crs.is_geographic and east < west else east, north


def _near(shapely: Any, area: AreaOfInterest, extent: _Box) -> NDArray[Any]:
    """Returns the parts of the polygons that are near an extent."""
    west, south, east, north = extent
    across, down = _MARGIN * (east - west), _MARGIN * (north - south)
    box = shapely.box(west - across, south - down, east + across, north + down)
    turns = (-360, 0, 360) if area.crs.is_geographic else (0,)
    moved = [shapely.transform(area.polygons, partial(np.add, (turn, 0))) for turn in turns]
    found = shapely.get_parts(shapely.intersection(np.concatenate(moved), box))
    return np.asarray(found[shapely.area(found) > 0], object)  # not edges that only touch the box


def _in_pixels(points: NDArray[np.float64], crs: Any, grid: Grid) -> NDArray[np.float64]:
    """Converts points (N, 2) in map coordinates to columns and rows of ``grid``."""
    rasterio = load_rasterio("--aoi")
    if crs != grid.crs:
        points = np.column_stack(rasterio.warp.transform(crs, grid.crs, *points.T.tolist()))
        if grid.crs.is_geographic and not crs.is_geographic:  # the longitude nearest to the grid's centre
            west, _, east, _ = grid.bounds
            points[:, 0] += 360 * np.round(((west + east) / 2 - points[:, 0]) / 360)
    columns, rows = mapped(~grid.transform, *points.T)
    return np.column_stack([columns, rows])


def _no_overlap(shapely: Any, area: AreaOfInterest, extent: _Box) -> InputError:
    boxes = shapely.total_bounds(area.polygons), extent
    found, scene = ("from ({:.9g}, {:.9g}) to ({:.9g}, {:.9g})".format(*box) for box in boxes)
    return InputError(
        f"area {area.path} covers no pixel of the scene: in {_name(area)}, the area reaches {found}, the scene "
        f"{scene}; check the coordinate system of the area"
    )


def _projection_errors() -> tuple[type[Exception], ...]:
    rasterio = load_rasterio("--aoi")
    return rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError  # the latter are PROJ's errors


def _name(area: AreaOfInterest) -> str:
    return str(area.crs.to_string())[:80]
