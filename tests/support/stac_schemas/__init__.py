"""Validates STAC Items by the published schemas, without a network.

The core schemas are those that pystac contains; those of the extensions lie beside this file (see README.md there).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_FILES = {
    f"https://stac-extensions.github.io/{name}/v{version}/schema.json": path
    for path in sorted(_HERE.glob("*.json"))
    for name, version in [path.stem.split("-")]
}


def problems(item: dict[str, Any]) -> list[str]:
    """Returns the violations of the core schemas and of those of the extensions that ``item`` declares.

    Raises:
        KeyError: The item declares an extension whose schema is not here.
    """
    from jsonschema import Draft7Validator
    from pystac.validation.local_validator import get_local_schema_cache
    from referencing import Registry, Resource

    known = get_local_schema_cache() | {uri: json.loads(path.read_bytes()) for uri, path in _FILES.items()}
    registry = Registry().with_resources([(uri, Resource.from_contents(found)) for uri, found in known.items()])
    core = f"https://schemas.stacspec.org/v{item['stac_version']}/item-spec/json-schema/item.json"
    return [
        f"{uri}: {error.json_path}: {error.message}"
        for uri in (core, *item["stac_extensions"])
        for error in Draft7Validator(known[uri], registry=registry).iter_errors(item)
    ]
