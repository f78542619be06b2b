"""Reads an area of interest: polygons from GeoJSON or GeoPackage, within the limits of ``limits.py``."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.limits import AREA_BYTES, AREA_CRS_BYTES, AREA_POLYGONS, AREA_VERTICES
from misgnet_runtime.raster.area.geojson import Rings, read_geojson
from misgnet_runtime.raster.area.geopackage import START, read_geopackage
from misgnet_runtime.raster.geotiff import load_library, load_rasterio
from misgnet_runtime.storage.files import is_file, read_at_most

_MOST_CROSSINGS = 10_000  # of edges of polygons that are repaired: the square of their number. 0.5 s
_POLYGON = 3  # shapely's type
_URN = re.compile(r"urn:ogc:def:crs:(EPSG|OGC):[\d.]*:(\w+)\Z", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class AreaOfInterest:
    """Polygons that limit the work on a scene."""

    path: Path
    sha256: str  # of the file's bytes
    polygons: NDArray[Any]  # shapely's, valid, (N,)
    crs: Any  # rasterio's coordinate system of the polygons
    warnings: tuple[str, ...] = ()


def read_area(path: Path) -> AreaOfInterest:
    """Reads the polygons of a GeoJSON file or a GeoPackage; the first bytes decide which of the two it is.

    Polygons whose outline crosses itself are repaired, with a warning, unless they have very many vertices.

    Raises:
        InputError: The file is missing, too large, not one of the two formats, has other geometries or no polygon, or
            a coordinate system that is not known.
        UnavailableError: rasterio or shapely is missing.
    """
    rasterio, shapely = load_rasterio("--aoi"), load_library("shapely", "--aoi")
    data = _read(path)
    try:
        if data.startswith(START):
            blobs, system = read_geopackage(data)
            polygons = _of_wkb(shapely, blobs)
        else:
            rings, system = read_geojson(data)
            polygons = _of_rings(shapely, rings)
        crs = _known(rasterio, system)
        polygons, repaired = _checked(shapely, polygons)
    except (ValueError, shapely.errors.ShapelyError) as error:
        raise InputError(f"area {path}: {error}") from None
    text = f"area {path}: {plural(repaired, 'polygon')} with crossing or touching outlines repaired; check the result"
    return AreaOfInterest(
        path=path, sha256=hashlib.sha256(data).hexdigest(), polygons=polygons, crs=crs,
        warnings=(text,) if repaired else (),
    )  # fmt: skip


def _read(path: Path) -> bytes:
    if not is_file(path):
        raise InputError(f"area {path} does not exist or is not a regular file")
    try:
        data = read_at_most(path, AREA_BYTES)
    except OSError as error:
        raise InputError(f"area {path} cannot be read: {error.strerror}") from error
    if data is None:
        raise InputError(f"area {path} has more than {AREA_BYTES >> 20} MiB; export only the polygons to its own file")
    return data


def _of_rings(shapely: Any, polygons: list[Rings]) -> NDArray[Any]:
    """Returns GeoJSON's rings, at least one for each polygon, as polygons."""
    _check_amount(len(polygons), sum(len(ring) for rings in polygons for ring in rings))
    found = []
    for rings in polygons:
        points = [np.array([position[:2] for position in ring], np.float64) for ring in rings]
        if any((ring[0] != ring[-1]).any() for ring in points):
            raise ValueError("a ring is not closed: its last position must equal the first")
        found.append(shapely.polygons(points[0], [shapely.linearrings(ring) for ring in points[1:]] or None))
    return np.array(found, object)


def _of_wkb(shapely: Any, blobs: list[bytes]) -> NDArray[Any]:
    if len(blobs) > AREA_POLYGONS:
        raise _too_many()
    try:
        return np.asarray(shapely.force_2d(shapely.get_parts(shapely.from_wkb(blobs))), object)
    except shapely.errors.GEOSException as error:
        raise ValueError(f"a geometry cannot be decoded: {error}") from None


def _checked(shapely: Any, polygons: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Returns the polygons that are not empty, repaired where necessary, and the number of those that were."""
    polygons = polygons[~shapely.is_empty(polygons)] if len(polygons) else polygons
    counts = shapely.get_num_coordinates(polygons)
    _check_amount(len(polygons), int(np.sum(counts)))
    if not len(polygons):
        raise ValueError("it has no polygon")
    if not all(np.isfinite(shapely.get_coordinates(polygons)).ravel()):
        raise ValueError("it has coordinates that are not finite")
    valid = shapely.is_valid(polygons)
    if not all(valid) and np.sum(counts[~valid].astype(np.float64) ** 2) > _MOST_CROSSINGS:
        reason = shapely.is_valid_reason(polygons[~valid][np.argmax(counts[~valid])])
        raise ValueError(f"polygons are invalid ({reason}), too many to repair here; use Fix geometries in QGIS")
    repaired = shapely.get_parts(shapely.make_valid(polygons[~valid]))
    kept = repaired[shapely.get_type_id(repaired) == _POLYGON]  # lines and points have no area
    found = np.concatenate([polygons[valid], kept])
    if not len(found):
        raise ValueError("it has no polygon with an area")
    return found, int(np.count_nonzero(~valid))


def _check_amount(polygons: int, vertices: int) -> None:
    if polygons > AREA_POLYGONS or vertices > AREA_VERTICES:
        raise _too_many()


def _too_many() -> ValueError:
    return ValueError(
        f"it has more than {AREA_POLYGONS:,} polygons or {AREA_VERTICES:,} vertices; export only those that the scene "
        "needs, or simplify them"
    )


def _known(rasterio: Any, system: str) -> Any:
    """Returns rasterio's coordinate system of a name or of a definition in WKT."""
    if len(system) > AREA_CRS_BYTES:
        raise ValueError("its coordinate system has too long a definition")
    named = _URN.match(system)
    text = f"{named[1].upper()}:{named[2]}" if named else system
    authority = re.match(r"(EPSG|OGC):(\w{1,10})\Z", text, re.IGNORECASE)
    try:
        if authority and authority[2].upper() in ("CRS84", "4326"):
            return rasterio.crs.CRS.from_epsg(4326)  # positions are longitude and latitude in both formats
        if authority and authority[1].upper() == "EPSG" and authority[2].isdecimal():
            return rasterio.crs.CRS.from_epsg(int(authority[2]))
        if "[" in text:
            return rasterio.crs.CRS.from_wkt(text)
    except (rasterio.errors.CRSError, rasterio._err.CPLE_BaseError) as error:
        raise ValueError(f"its coordinate system is not known: {error}") from None
    raise ValueError(f"its coordinate system '{system[:80]}' is not known; expected such as EPSG:32633")
