"""Reads and converts a result's polygons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from misgnet_runtime.raster.geotiff import load_library
from misgnet_runtime.raster.polygons import DRIVERS, UTC

VECTORS = tuple(DRIVERS)


def read_polygons(path: Path) -> Any:
    """Returns the polygons as a GeoDataFrame where geopandas is installed, else as a GeoJSON FeatureCollection."""
    try:
        import geopandas
    except ImportError:
        return _collection(path)
    return geopandas.read_file(path, layer=0, engine="pyogrio")


def _collection(path: Path) -> dict[str, Any]:
    """Returns a GeoJSON FeatureCollection; its ``crs`` is the text of the coordinate system, or None."""
    pyogrio, shapely = (load_library(name, "a result's polygons") for name in ("pyogrio", "shapely"))
    meta, _, outlines, columns = pyogrio.raw.read(path, layer=0, datetime_as_string=True)
    names = [str(name) for name in meta["fields"]]
    rows = zip(*(column.tolist() for column in columns), strict=True) if names else [()] * len(outlines)
    features = [
        {
            "type": "Feature", "geometry": shapely.geometry.mapping(outline),
            "properties": dict(zip(names, row, strict=True)),
        }
        for outline, row in zip(shapely.from_wkb(outlines), rows, strict=True)
    ]  # fmt: skip
    return {"type": "FeatureCollection", "crs": meta["crs"], "features": features}


def convert_polygons(source: Path, target: Path) -> None:
    """Writes the polygons in the format of another suffix; GeoJSON is in longitude and latitude (RFC 7946)."""
    pyogrio = load_library("pyogrio", "a result's polygons")
    meta, _, outlines, columns = pyogrio.raw.read(source, layer=0)
    driver = DRIVERS[target.suffix.lower()]
    times = {
        name: np.full(len(column), UTC, np.int8)
        for name, column in zip(meta["fields"], columns, strict=True)
        if column.dtype.kind == "M"
    }
    pyogrio.raw.write(
        target, outlines, columns, meta["fields"], layer="change", driver=driver, geometry_type="Polygon",
        crs=meta["crs"], gdal_tz_offsets=times,
        layer_options={"RFC7946": "YES"} if driver == "GeoJSON" and meta["crs"] else {},
    )  # fmt: skip
