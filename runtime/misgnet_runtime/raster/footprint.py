"""Places the outline of a raster on the Earth, as GeoJSON (RFC 7946)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.geotiff import mapped
from misgnet_runtime.raster.grid import Grid

_POINTS = 16  # per edge: a straight line on a map is curved in longitude and latitude
_DECIMALS = 7  # about 1 cm


@dataclass(frozen=True)
class Footprint:
    """The outline of a raster in longitude and latitude, WGS 84."""

    geometry: dict[str, Any]  # a Polygon; a MultiPolygon if it crosses the antimeridian
    bbox: tuple[float, float, float, float]  # west, south, east and north; west > east across the antimeridian


def footprint(rasterio: Any, grid: Grid) -> Footprint:
    """Returns the footprint of a georeferenced grid; raises InputError if it cannot be transformed."""
    outline = {"type": "Polygon", "coordinates": [_ring(grid)]}
    try:
        found = rasterio.warp.transform_geom(grid.crs, "OGC:CRS84", outline, precision=_DECIMALS)
    except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:  # the latter are PROJ's errors
        raise InputError(f"the outline of {grid} cannot be transformed to longitude and latitude: {error}") from error
    polygons = [found["coordinates"]] if found["type"] == "Polygon" else found["coordinates"]
    geometry = {"type": found["type"], "coordinates": _lists(found["coordinates"])}
    return Footprint(geometry, _bbox([polygon[0] for polygon in polygons]))


def _ring(grid: Grid) -> list[tuple[float, float]]:
    """Returns the closed outline in map coordinates, counterclockwise for a north-up raster."""
    points = 1 if grid.crs.is_geographic else _POINTS
    steps = [index / points for index in range(points)]
    unit = [*((0.0, s) for s in steps), *((s, 1.0) for s in steps), *((1.0, 1 - s) for s in steps),
            *((1 - s, 0.0) for s in steps)]  # fmt: skip
    ring = [mapped(grid.transform, x * grid.width, y * grid.height) for x, y in unit]
    ring = ring[::-1] if grid.south_up else ring
    return [*ring, ring[0]]


def _bbox(rings: list[Any]) -> tuple[float, float, float, float]:
    boxes = [(min(x), min(y), max(x), max(y)) for x, y in (zip(*ring, strict=True) for ring in rings)]
    souths, norths = min(box[1] for box in boxes), max(box[3] for box in boxes)
    west, east = min(box[0] for box in boxes), max(box[2] for box in boxes)
    if len(boxes) > 1 and (west, east) == (-180, 180):  # the parts on both sides of the antimeridian
        west, east = min(box[0] for box in boxes if box[0] > 0), max(box[2] for box in boxes if box[2] < 0)
    return west, souths, east, norths


def _lists(value: Any) -> Any:
    return [_lists(one) for one in value] if isinstance(value, (list, tuple)) else value
