"""Writes a STAC Item that describes the outputs of a scene: place, time, bands, and what they were made from.

STAC 1.1; the extensions projection 2.0, raster 1.1, processing 1.1 and file 2.1. No timestamps of the run, so that
equal runs write equal bytes.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.jobs.scene.inputs import Inputs
from misgnet_runtime.jobs.scene.report.content import Facts
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
# See misgnet_runtime.raster.writer.classify.
_BANDS: dict[str, dict[str, Any]] = {
    "output": {"data_type": "uint8", "nodata": 255},
    "probability": {"data_type": "float32", "nodata": "nan"},
}
_MULTIHASH = "1220"  # prefix of a SHA-256 of 32 bytes in hexadecimal
_MEDIA = {
    ".fgb": "application/vnd.flatgeobuf", ".geojson": "application/geo+json",
    ".gpkg": "application/geopackage+sqlite3", ".html": "text/html", ".json": "application/json", ".png": "image/png",
    ".tif": _GEOTIFF, ".tiff": _GEOTIFF,
}  # fmt: skip
# Titles and roles of the outputs, by option.
_ABOUT = {
    "output": ("Change: 0 unchanged, 1 changed, 255 no data", "data"),
    "probability": ("Probability of change, 0 to 1", "data"),
    "vector": ("Polygons of changed areas", "data"),
    "quicklook": ("Both dates and the change", "overview"),
    "report": ("Page about the scene", "metadata"),
}
_MASK = "Change: 0 unchanged or no data, 255 changed"


def load_pystac() -> Any:
    """Imports pystac; raises UnavailableError with the install command if it is missing."""
    try:
        return importlib.import_module("pystac")
    except ImportError as error:
        raise UnavailableError("a STAC Item requires pystac: pip install 'misgnet-export[stac]'") from error


def check_described(inputs: Inputs) -> None:
    """Raises UnavailableError if pystac is missing, and InputError if place or time of a map to describe is unknown."""
    load_pystac()
    if not inputs.grid.georeferenced:
        raise InputError(f"--stac-item requires georeferenced rasters, but BEFORE is {inputs.grid}; omit --stac-item")
    if inputs.after.acquired is None:
        raise InputError(
            f"--stac-item requires the acquisition time of AFTER, and {inputs.after.origin} does not state it; write "
            "it into the file (gdal_edit.py -mo TIFFTAG_DATETIME='2026:05:01 10:20:31'), or give a STAC Item as AFTER"
        )


def write_stac_item(path: Path, facts: Facts, written: Mapping[str, Path], places: Mapping[str, Path]) -> None:
    """Writes the item of a finished map as ``path``; raises OSError if writing fails.

    Args:
        path: The file to write.
        facts: What is known about the map.
        written: The complete outputs by option, under temporary names.
        places: Their final paths.
    """
    folder, inputs = places["stac_item"].parent, facts.inputs
    place = footprint(load_rasterio("a STAC Item"), inputs.grid)
    pystac = load_pystac()
    item = pystac.Item(
        id=places["output"].stem, geometry=place.geometry, bbox=list(place.bbox), datetime=_times(inputs)[-1],
        properties=_properties(facts), stac_extensions=list(_EXTENSIONS.values()),
    )  # fmt: skip
    for name in _ABOUT:
        if name in written:
            asset = _asset(facts, name, written[name], places[name], folder)
            item.add_asset("change" if name == "output" else name, pystac.Asset.from_dict(asset))
    for date in (inputs.before, inputs.after):
        kind = "application/geo+json" if date.identity.kind == "stac-item" else _GEOTIFF
        item.add_link(pystac.Link("derived_from", _href(date.origin, folder), kind))
    found = item.to_dict(include_self_link=False, transform_hrefs=False) | {"stac_version": _STAC}
    path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", "utf-8")


def _times(inputs: Inputs) -> list[datetime]:
    """Returns the known acquisition times, the latest last."""
    found = (inputs.before.acquired, inputs.after.acquired)
    return sorted(time.astimezone(timezone.utc) for time in found if time is not None)


def _properties(facts: Facts) -> dict[str, Any]:
    tags, times = facts.tags, [time.isoformat().replace("+00:00", "Z") for time in _times(facts.inputs)]
    span = {"start_datetime": times[0], "end_datetime": times[1]} if len(times) == 2 else {}
    software, version = tags["MISGNET_SOFTWARE"].split()
    changed = {} if facts.changed_share is None else {"misgnet:changed_share": facts.changed_share}
    return {
        **span,
        **_projection(facts.inputs.grid),
        "processing:software": {software: version},
        "processing:lineage": f"Change between the two inputs, found by engine {tags['MISGNET_ENGINE']} of bundle "
        f"{tags['MISGNET_BUNDLE_SHA256']} where the probability is above {tags['MISGNET_THRESHOLD']}",
        "misgnet:bundle_sha256": tags["MISGNET_BUNDLE_SHA256"],
        "misgnet:bundle_version": int(tags["MISGNET_BUNDLE_VERSION"]),
        "misgnet:engine": tags["MISGNET_ENGINE"],
        "misgnet:threshold": float(tags["MISGNET_THRESHOLD"]),
        "misgnet:valid_share": facts.valid_share,
        **changed,
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


def _asset(facts: Facts, name: str, written: Path, place: Path, folder: Path) -> dict[str, Any]:
    title, role = _ABOUT[name]
    kind, suffix = _MEDIA[place.suffix.lower()], place.suffix.lower()
    if kind == _GEOTIFF:
        kind += "; profile=cloud-optimized" * facts.options.cog
        bands = {"raster:bands": [{**_BANDS[name], "statistics": {"valid_percent": 100 * facts.valid_share}}]}
    else:
        title, bands = _MASK if name == "output" else title, {}
    # A GeoPackage states the time at which it was written, so that its digest differs between equal runs.
    digest = {} if suffix == ".gpkg" else {"file:checksum": _MULTIHASH + file_sha256(written)}
    return {
        "href": _relative(place, folder), "type": kind, "title": title, "roles": [role],
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
