"""Writes a STAC Item that describes the outputs of a scene: place, time, bands, and what they were made from.

STAC 1.1; the extensions projection 2.0, raster 1.1, processing 1.1 and file 2.1. No timestamps of the run, so that
equal runs write equal bytes.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.jobs.scene.inputs import Inputs
from misgnet_runtime.raster.footprint import footprint
from misgnet_runtime.raster.geotiff import load_rasterio
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.source import RasterFile
from misgnet_runtime.storage.files import file_sha256

_STAC = "1.1.0"
_EXTENSIONS = {
    name: f"https://stac-extensions.github.io/{name}/v{version}/schema.json"
    for name, version in (("file", "2.1.0"), ("processing", "1.1.0"), ("projection", "2.0.0"), ("raster", "1.1.0"))
}
_GEOTIFF = "image/tiff; application=geotiff"
_CHANGE = {"data_type": "uint8", "nodata": 255}  # see misgnet_runtime.raster.writer.classify
_PROBABILITY = {"data_type": "float32", "nodata": "nan"}
_MULTIHASH = "1220"  # prefix of a SHA-256 of 32 bytes in hexadecimal
_MEDIA = {
    ".fgb": "application/vnd.flatgeobuf", ".geojson": "application/geo+json",
    ".gpkg": "application/geopackage+sqlite3", ".html": "text/html", ".json": "application/json", ".png": "image/png",
    ".tif": _GEOTIFF, ".tiff": _GEOTIFF,
}  # fmt: skip
# Titles and roles of the outputs, by option; the map is "change".
_ABOUT = {
    "change": ("Change: 0 unchanged, 1 changed, 255 no data", "data"),
    "probability": ("Probability of change, 0 to 1", "data"),
    "vector": ("Polygons of changed areas", "data"),
    "quicklook": ("Both dates and the change", "overview"),
    "report": ("Page about the scene", "metadata"),
}
_MASK = "Change: 0 unchanged or no data, 255 changed"


@dataclass(frozen=True, kw_only=True)
class Described:
    """What an item describes."""

    inputs: Inputs
    outputs: Mapping[str, Path]  # final paths by option, the map as "change"
    written: Mapping[str, Path]  # the same files, complete, under temporary names
    cog: bool  # whether rasters are cloud-optimised
    lineage: str  # how the map was made
    version: str  # of this software
    properties: Mapping[str, str | float | None]  # further properties, without prefix
    valid_share: float  # 0 to 1


def load_pystac() -> Any:
    """Imports pystac; raises UnavailableError with the install command if it is missing."""
    try:
        return importlib.import_module("pystac")
    except ImportError as error:
        raise UnavailableError("a STAC Item requires pystac: pip install 'misgnet-export[stac]'") from error


def check_described(inputs: Inputs) -> None:
    """Raises InputError if place or time, which an item requires, is not known."""
    if not inputs.grid.georeferenced:
        raise InputError(f"--stac-item requires georeferenced rasters, but BEFORE is {inputs.grid}; omit --stac-item")
    if inputs.after.acquired is None:
        raise InputError(
            f"--stac-item requires the acquisition time of AFTER, and {inputs.after.origin} does not state it; write "
            "it into the file (gdal_edit.py -mo TIFFTAG_DATETIME='2026:05:01 10:20:31'), or give a STAC Item as AFTER"
        )


def write_stac_item(path: Path, about: Described) -> None:
    """Writes the item of the outputs ``about``, as ``path``; raises OSError if writing fails."""
    final = about.outputs["stac_item"]
    place = footprint(load_rasterio("a STAC Item"), about.inputs.grid)
    pystac = load_pystac()
    item = pystac.Item(
        id=about.outputs["change"].stem, geometry=place.geometry, bbox=list(place.bbox), datetime=_times(about)[-1],
        properties=_properties(about), stac_extensions=list(_EXTENSIONS.values()),
        assets={name: pystac.Asset.from_dict(_asset(about, name, final.parent)) for name in about.written
                if name in _ABOUT},
    )  # fmt: skip
    for date in (about.inputs.before, about.inputs.after):
        kind = "application/geo+json" if date.identity.kind == "stac-item" else _GEOTIFF
        item.add_link(pystac.Link("derived_from", _href(date.origin, final.parent), kind))
    found = item.to_dict(include_self_link=False, transform_hrefs=False) | {"stac_version": _STAC}
    path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", "utf-8")


def _times(about: Described) -> list[datetime]:
    """Returns the known acquisition times, the latest last."""
    found = (about.inputs.before.acquired, about.inputs.after.acquired)
    return sorted(time.astimezone(timezone.utc) for time in found if time is not None)


def _properties(about: Described) -> dict[str, Any]:
    times = [time.isoformat().replace("+00:00", "Z") for time in _times(about)]
    span = {"start_datetime": times[0], "end_datetime": times[1]} if len(times) == 2 else {}
    return {
        **span,
        **_projection(about.inputs.grid),
        "processing:software": {"misgnet-export": about.version},
        "processing:lineage": about.lineage,
        **{f"misgnet:{name}": value for name, value in about.properties.items() if value is not None},
    }


def _projection(grid: Grid) -> dict[str, Any]:
    code = grid.crs.to_authority()
    return {
        "proj:code": ":".join(code) if code else None,
        **({} if code else {"proj:wkt2": grid.crs.to_wkt(version="WKT2_2019")}),
        "proj:bbox": list(grid.bounds),
        "proj:shape": [grid.height, grid.width],
        "proj:transform": list(grid.transform)[:6],
    }


def _asset(about: Described, name: str, folder: Path) -> dict[str, Any]:
    path, written = about.outputs[name], about.written[name]
    title, role = _ABOUT[name]
    kind = _MEDIA[path.suffix.lower()]
    if kind == _GEOTIFF:
        kind += "; profile=cloud-optimized" * about.cog
        band = {"change": _CHANGE, "probability": _PROBABILITY}[name]
        bands = {"raster:bands": [{**band, "statistics": {"valid_percent": 100 * about.valid_share}}]}
    else:
        title, bands = _MASK if name == "change" else title, {}
    # A GeoPackage states the time at which it was written, so that its digest differs between equal runs.
    digest = {} if path.suffix.lower() == ".gpkg" else {"file:checksum": _MULTIHASH + file_sha256(written)}
    return {
        "href": _relative(path, folder), "type": kind, "title": title, "roles": [role],
        "file:size": written.stat().st_size, **digest, **bands,
    }  # fmt: skip


def _href(origin: RasterFile, folder: Path) -> str:
    """Returns the reference to an input: relative for a local file; an address is without query and password."""
    return _relative(origin.paths[0], folder) if origin.paths else origin.link


def _relative(path: Path, folder: Path) -> str:
    try:
        found = Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    except ValueError:  # another drive of Windows
        return path.absolute().as_posix()
    return found if found.startswith("..") else f"./{found}"
