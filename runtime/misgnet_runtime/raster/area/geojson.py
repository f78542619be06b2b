"""Reads polygons from GeoJSON (RFC 7946): JSON of known fields; any other geometry is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from misgnet_runtime.storage.schema import JSON_ERRORS

_Position = Annotated[tuple[float, ...], Meta(min_length=2, max_length=4)]  # the height is ignored
_Ring = Annotated[list[_Position], Meta(min_length=4)]
_Rings = Annotated[list[_Ring], Meta(min_length=1)]


class _Name(msgspec.Struct, frozen=True):
    name: str


class _Crs(msgspec.Struct, frozen=True, tag_field="type", tag="name"):
    properties: _Name


class _Root(msgspec.Struct, frozen=True, tag_field="type"):
    crs: _Crs | None = None  # of the format before RFC 7946


class Polygon(_Root, frozen=True, kw_only=True, tag="Polygon"):
    coordinates: _Rings


class MultiPolygon(_Root, frozen=True, kw_only=True, tag="MultiPolygon"):
    coordinates: list[_Rings]


class Feature(_Root, frozen=True, kw_only=True, tag="Feature"):
    geometry: Polygon | MultiPolygon | None


class FeatureCollection(_Root, frozen=True, kw_only=True, tag="FeatureCollection"):
    features: list[Feature]


_Json = Polygon | MultiPolygon | Feature | FeatureCollection
Rings = list[list[tuple[float, ...]]]


def read_geojson(data: bytes) -> tuple[list[Rings], str]:
    """Returns the polygons, each as its rings, and the name of their coordinate system.

    It is WGS 84, longitude and latitude, as RFC 7946 requires, unless the member ``crs`` of the older format names
    another. Raises ValueError for anything else.
    """
    try:
        root: _Json = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=_Json)
    except JSON_ERRORS as error:
        raise ValueError(f"it is not GeoJSON with polygons: {error}") from None
    return list(_polygons(root)), root.crs.properties.name if root.crs else "OGC:CRS84"


def _polygons(found: Any) -> Iterator[Rings]:
    if isinstance(found, FeatureCollection):
        for feature in found.features:
            yield from _polygons(feature)
    elif isinstance(found, Feature):
        yield from _polygons(found.geometry)
    elif isinstance(found, Polygon):
        yield found.coordinates
    elif isinstance(found, MultiPolygon):
        yield from found.coordinates
