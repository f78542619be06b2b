"""Writes changed areas as polygons, with their attributes and a style."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.raster.changes import Change, affine
from misgnet_runtime.raster.geotiff import load_library
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.styles import change_areas

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}
_LAYER, _STYLES = "change", "layer_styles"  # the second name is QGIS's
UTC = 100  # OGR's flag of a time zone


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What all polygons of a scene have in common."""

    scene: str  # the scene's name
    before: datetime | None  # when the images were taken; None: unknown
    after: datetime | None


def write_polygons(path: Path, changes: list[Change], grid: Grid, about: Attributes, simplify: float = 0) -> None:
    """Writes changed areas, numbered from 1 in their order.

    GeoJSON is in longitude and latitude, as RFC 7946 requires. A GeoPackage also gets a style for QGIS.

    Args:
        path: The file, whose suffix chooses the format.
        changes: The areas.
        grid: The grid of their outlines.
        about: Attributes of all areas.
        simplify: Tolerance for simplifying outlines, in pixels.

    Raises:
        UnavailableError: pyogrio or shapely is missing.
        InputError: The file cannot be written.
        StorageError: The written file differs when it is read back.
    """
    pyogrio, shapely = (load_library(name, "--vector") for name in ("pyogrio", "shapely"))
    outlines = shapely.simplify([one.outline for one in changes], simplify, preserve_topology=True)
    if grid.has_transform:
        matrix, origin = affine(grid)
        outlines = shapely.transform(outlines, lambda points: points @ matrix + origin)
    _write(pyogrio, path, shapely.to_wkb(outlines), _fields(changes, grid, about), grid)


def _fields(changes: list[Change], grid: Grid, about: Attributes) -> dict[str, NDArray[Any]]:
    count = len(changes)
    return {
        "id": np.arange(1, count + 1, dtype=np.int64),
        "pixels": np.array([one.pixels for one in changes], np.int64),
        **({"area_m2": np.array([one.area for one in changes], np.float64)} if grid.georeferenced else {}),
        "probability": np.array([one.probability for one in changes], np.float64),
        "probability_max": np.array([one.maximum for one in changes], np.float64),
        "before_date": _dates(about.before, count),
        "after_date": _dates(about.after, count),
        "scene": np.array([about.scene] * count, object),
    }


def _dates(date: datetime | None, count: int) -> NDArray[np.datetime64]:
    """Returns one time, in UTC, ``count`` times; None becomes null."""
    utc = None if date is None else date.astimezone(timezone.utc).replace(tzinfo=None)
    return np.full(count, np.datetime64(utc or "NaT", "ms"))


def _write(pyogrio: Any, path: Path, outlines: Any, fields: dict[str, Any], grid: Grid) -> None:
    driver = DRIVERS[path.suffix.lower()]
    layer = {"RFC7946": "YES"} if driver == "GeoJSON" and grid.georeferenced else {}
    zones = {name: np.full(len(outlines), UTC) for name in ("before_date", "after_date")}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*crs.* was not provided")
            pyogrio.raw.write(
                path, np.asarray(outlines, object), list(fields.values()), list(fields), layer=_LAYER,
                driver=driver, geometry_type="Polygon", crs=grid.crs.to_wkt() if grid.georeferenced else None,
                layer_options=layer, gdal_tz_offsets=zones,
            )  # fmt: skip
            if driver == "GPKG":
                _write_style(pyogrio, path)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.GeometryError) as error:
        raise InputError(
            f"{path} cannot be written: {error}; free some space or choose another name, then rerun the command"
        ) from error
    if not _is_written(pyogrio, path, fields["pixels"]):
        raise StorageError(f"{path} differs from what was written; check the disk, and rerun the command")


def _write_style(pyogrio: Any, path: Path) -> None:
    """Adds the table in which QGIS keeps the default styles of a GeoPackage's layers."""
    table: dict[str, Any] = {
        "f_table_catalog": "", "f_table_schema": "", "f_table_name": _LAYER, "f_geometry_column": "geom",
        "styleName": "change", "styleQML": change_areas(), "styleSLD": "", "useAsDefault": True,
        "description": "changed areas", "owner": "", "ui": None, "update_time": None,
    }  # fmt: skip
    values = [np.array([value], bool if value is True else object) for value in table.values()]
    pyogrio.raw.write(
        path, None, values, list(table), layer=_STYLES, driver="GPKG", geometry_type=None, append=True
    )  # fmt: skip


def _is_written(pyogrio: Any, path: Path, pixels: NDArray[np.int64]) -> bool:
    """Reads the file back: errors while GDAL closes a GeoPackage are not reported, and leave an empty layer.

    GDAL's warnings count as failures. The order is not compared, since FlatGeobuf reorders features.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            meta, _, outlines, columns = pyogrio.raw.read(path, layer=_LAYER)
            if path.suffix.lower() == ".gpkg" and len(pyogrio.raw.read(path, layer=_STYLES)[3][0]) != 1:
                return False
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, RuntimeWarning):
        return False
    names = list(meta["fields"])
    found = columns[names.index("pixels")] if "pixels" in names else np.empty(0)
    return len(outlines) == len(pixels) and np.array_equal(np.sort(found), np.sort(pixels))
