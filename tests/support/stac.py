"""Writes STAC Items of rasters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GEOTIFF = "image/tiff; application=geotiff"
COLOURS = ("red", "green", "blue")
REFLECTANCE = {"data_type": "uint16", "nodata": 0, "scale": 0.0001, "offset": -0.1}


def item_json(assets: dict[str, Any], time: str | None = "2023-06-01T10:20:31.024Z", **properties: Any) -> bytes:
    """Returns the text of an item."""
    return json.dumps({
        "type": "Feature", "stac_version": "1.0.0", "id": "scene", "geometry": None, "links": [], "assets": assets,
        "properties": {"datetime": time, **properties},
    }).encode()  # fmt: skip


def write_item(path: Path, assets: dict[str, Any], time: str | None = "2023-06-01T10:20:31.024Z", **more: Any) -> Path:
    path.write_bytes(item_json(assets, time, **more))
    return path


def asset(href: str, colour: str | None = None, **stated: Any) -> dict[str, Any]:
    """Returns an asset of one band, in the form of STAC 1.0."""
    found: dict[str, Any] = {"href": href, "type": GEOTIFF, "roles": ["data"]}
    if stated:
        found["raster:bands"] = [stated]
    if colour:
        found["eo:bands"] = [{"name": "B", "common_name": colour}]
    return found


def single_band_assets(**stated: Any) -> dict[str, Any]:
    """Returns the assets red, green and blue, each of one band in ``./COLOUR.tif``."""
    return {colour: asset(f"./{colour}.tif", colour, **(stated or REFLECTANCE)) for colour in COLOURS}


def three_bands(href: str, **stated: Any) -> dict[str, Any]:
    """Returns an asset of three bands, in the form of STAC 1.1."""
    bands = [{"name": f"B{n}", "eo:common_name": colour} for n, colour in enumerate(COLOURS)]
    return {"href": href, "type": GEOTIFF, "bands": bands, **stated}
