"""Validates STAC Items without a network.

The core schemas are those that pystac contains (Apache-2.0). Of the extensions, the conditions for Items are restated
here from their specifications at https://github.com/stac-extensions: file 2.1.0, processing 1.1.0, projection 2.0.0 and
raster 1.1.0. A field with an extension's prefix that the extension does not define is an error, as in its schema.
"""

from __future__ import annotations

from typing import Any

_NUMBER, _TEXT = {"type": "number"}, {"type": "string"}
_TYPES = [
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32", "float64",
    "cint16", "cint32", "cfloat32", "cfloat64", "other",
]  # fmt: skip


def _numbers(*counts: int, kind: str = "number") -> dict[str, Any]:
    lengths = [{"minItems": count, "maxItems": count} for count in counts]
    return {"type": "array", "items": {"type": kind}, "oneOf": lengths}


def _known(prefix: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of an object whose fields with ``prefix`` are ``fields``."""
    named = {f"{prefix}:{name}": field for name, field in fields.items()}
    other = {f"^(?!{prefix}:)": {}}
    return {"type": "object", "properties": named, "patternProperties": other, "additionalProperties": False}


_STATISTICS = {
    "type": "object", "minProperties": 1, "additionalProperties": False,
    "properties": dict.fromkeys(("mean", "minimum", "maximum", "stddev", "valid_percent"), _NUMBER),
}  # fmt: skip
_BAND = {
    "type": "object", "minProperties": 1,
    "properties": {
        "data_type": {"enum": _TYPES}, "unit": _TEXT, "bits_per_sample": {"type": "integer"},
        "sampling": {"enum": ["area", "point"]}, "nodata": {"oneOf": [_NUMBER, {"enum": ["nan", "inf", "-inf"]}]},
        "scale": _NUMBER, "offset": _NUMBER, "spatial_resolution": _NUMBER, "statistics": _STATISTICS,
    },
}  # fmt: skip
_FIELDS = {
    "file/v2.1.0": _known("file", {
        "byte_order": {"enum": ["big-endian", "little-endian"]},
        "checksum": {"type": "string", "pattern": "^[a-f0-9]+$"},
        "header_size": {"type": "integer", "minimum": 0}, "size": {"type": "integer", "minimum": 0},
        "values": {"type": "array"}, "local_path": _TEXT,
    }),
    "processing/v1.1.0": _known("processing", {
        "expression": {"type": "object", "required": ["format", "expression"]}, "lineage": _TEXT, "level": _TEXT,
        "facility": _TEXT, "software": {"type": "object", "additionalProperties": _TEXT},
    }),
    "projection/v2.0.0": _known("proj", {
        "code": {"type": ["string", "null"]}, "wkt2": {"type": ["string", "null"]},
        "projjson": {"type": ["object", "null"]}, "geometry": {"type": "object"}, "bbox": _numbers(4, 6),
        "centroid": {"type": "object", "required": ["lat", "lon"]}, "shape": _numbers(2, kind="integer"),
        "transform": _numbers(6, 9),
    }),
    "raster/v1.1.0": _known("raster", {"bands": {"type": "array", "minItems": 1, "items": _BAND}}),
}  # fmt: skip


def problems(item: dict[str, Any]) -> list[str]:
    """Returns the violations of the core schemas and of those of the extensions that ``item`` declares."""
    from jsonschema import Draft7Validator
    from pystac.validation.local_validator import get_local_schema_cache
    from referencing import Registry, Resource

    core = get_local_schema_cache()
    registry = Registry().with_resources([(uri, Resource.from_contents(found)) for uri, found in core.items()])
    uri = f"https://schemas.stacspec.org/v{item['stac_version']}/item-spec/json-schema/item.json"
    found = [error.message for error in Draft7Validator(core[uri], registry=registry).iter_errors(item)]
    for name in item["stac_extensions"]:
        key = name.removeprefix("https://stac-extensions.github.io/").removesuffix("/schema.json")
        schema = Draft7Validator(_FIELDS[key])
        for part in (item["properties"], *item["assets"].values()):
            found += [f"{key}: {error.message}" for error in schema.iter_errors(part)]
    return found
