"""Writes changed areas as polygons, traced over the whole raster so that tile borders do not cut them."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError, StorageError, UnavailableError
from misgnet_runtime.raster.geotiff import GDAL, load_rasterio, mapped, open_geotiff
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.raster.writer import CHANGED, Probabilities

_DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}
_STRIP = 1024  # rows of probabilities in memory at once
_RADIUS, _FLATTENING = 6378137.0, 1 / 298.257223563  # WGS 84


@dataclass(frozen=True)
class Change:
    """One changed area."""

    outline: Any  # shapely polygon, in pixels
    pixels: int  # number of pixels
    probability: float  # mean over the pixels


@dataclass(frozen=True)
class VectorOptions:
    """Options of the polygons."""

    min_area: float  # m²; pixels if the raster is not georeferenced
    simplify: float  # tolerance in pixels


def write_polygons(path: Path, change: Path, probabilities: Probabilities, grid: Grid, options: VectorOptions) -> int:
    """Writes the changed areas of the raster ``change`` and returns their number.

    Fields: pixels, probability, and area_m2 if the raster is georeferenced. GeoJSON is in longitude and latitude, as
    RFC 7946 requires.

    Raises:
        UnavailableError: pyogrio or shapely is missing.
        InputError: The file cannot be written.
        StorageError: The written file differs when it is read back.
    """
    pyogrio, shapely = (_load(name) for name in ("pyogrio", "shapely"))
    found, areas = [], []
    for one in _changes(shapely, change, probabilities, grid):
        area = one.pixels * _pixel_area(grid, one.outline.centroid) if grid.georeferenced else float(one.pixels)
        if area >= options.min_area:
            found.append(one)
            areas.append(area)
    fields = {
        "pixels": np.array([one.pixels for one in found], np.int64),
        "probability": np.array([one.probability for one in found], np.float64),
    }
    if grid.georeferenced:
        fields["area_m2"] = np.array(areas, np.float64)
    outlines = shapely.simplify([one.outline for one in found], options.simplify, preserve_topology=True)
    outlines = shapely.transform(outlines, lambda points: _on_ground(grid, points)) if grid.has_transform else outlines
    _write(pyogrio, path, shapely.to_wkb(outlines), fields, grid)
    return len(found)


def load_vector_libraries() -> None:
    """Raises UnavailableError if pyogrio or shapely is missing; called before a run starts."""
    for name in ("pyogrio", "shapely"):
        _load(name)


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"--vector requires {name}: pip install 'misgnet-export[geo]'") from error


def _changes(shapely: Any, change: Path, probabilities: Probabilities, grid: Grid) -> Iterator[Change]:
    """Yields areas of pixels that share an edge. GDAL's map coordinates are converted back to whole pixel corners."""
    rasterio = load_rasterio("a scene")
    with rasterio.Env(**GDAL), open_geotiff(rasterio, change) as dataset:
        band = rasterio.band(dataset, 1)
        for shape, value in rasterio.features.shapes(band, mask=band, connectivity=4):
            if value == CHANGED:
                outline = shapely.geometry.shape(shape)
                if grid.has_transform:
                    outline = shapely.transform(outline, lambda points: _in_pixels(grid, points))
                yield Change(outline, round(outline.area), _mean_probability(rasterio, outline, probabilities))


def _mean_probability(rasterio: Any, outline: Any, probabilities: Probabilities) -> float:
    left, top, right, bottom = (int(edge) for edge in outline.bounds)
    total = 0.0
    for rows in Span(top, bottom).split(_STRIP):
        inside = rasterio.features.geometry_mask(
            [outline], (rows.length, right - left), rasterio.Affine.translation(left, rows.start), invert=True
        )
        total += float(probabilities.read(rows, Span(left, right))[inside].sum(dtype=np.float64))
    return total / float(outline.area)


def _pixel_area(grid: Grid, centre: Any) -> float:
    """Returns the area of a pixel in m².

    In geographic coordinates on the ellipsoid, at the latitude of ``centre``; otherwise in the plane of the map.
    """
    t = grid.transform
    plane = abs(t.a * t.e - t.b * t.d)
    if not grid.crs.is_geographic:
        return float(plane * grid.crs.linear_units_factor[1] ** 2)
    _, latitude = mapped(t, centre.x, centre.y)
    squared = _FLATTENING * (2 - _FLATTENING)
    bend = 1 - squared * math.sin(math.radians(latitude)) ** 2
    meridian, parallel = _RADIUS * (1 - squared) / bend**1.5, _RADIUS / bend**0.5
    return float(plane * math.radians(1) ** 2 * meridian * parallel * math.cos(math.radians(latitude)))


def _on_ground(grid: Grid, points: Any) -> Any:
    """Converts pixel corners (N, 2) to map coordinates."""
    matrix, origin = _affine(grid)
    return points @ matrix + origin


def _in_pixels(grid: Grid, points: Any) -> Any:
    matrix, origin = _affine(grid)
    return np.rint((points - origin) @ np.linalg.inv(matrix))


def _affine(grid: Grid) -> tuple[Any, Any]:
    t = grid.transform
    return np.array([[t.a, t.d], [t.b, t.e]]), np.array([t.c, t.f])


def _write(pyogrio: Any, path: Path, outlines: Any, fields: dict[str, Any], grid: Grid) -> None:
    driver = _DRIVERS[path.suffix.lower()]
    layer = {"RFC7946": "YES"} if driver == "GeoJSON" and grid.georeferenced else {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*crs.* was not provided")
            pyogrio.raw.write(
                path, np.asarray(outlines, object), list(fields.values()), list(fields), layer="change",
                driver=driver, geometry_type="Polygon", crs=grid.crs.to_wkt() if grid.georeferenced else None,
                layer_options=layer,
            )  # fmt: skip
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.GeometryError) as error:
        raise InputError(
            f"{path} cannot be written: {error}; free some space or choose another name, then rerun the command"
        ) from error
    if not _is_written(pyogrio, path, fields["pixels"]):
        raise StorageError(f"{path} differs from what was written; check the disk, and rerun the command")


def _is_written(pyogrio: Any, path: Path, pixels: NDArray[np.int64]) -> bool:
    """Reads the file back: errors while GDAL closes a GeoPackage are not reported, and leave an empty layer.

    GDAL's warnings count as failures. The order is not compared, since FlatGeobuf reorders features.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            meta, _, outlines, columns = pyogrio.raw.read(path)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, RuntimeWarning):
        return False
    names = list(meta["fields"])
    found = columns[names.index("pixels")] if "pixels" in names else np.empty(0)
    return len(outlines) == len(pixels) and np.array_equal(np.sort(found), np.sort(pixels))
