"""Reads the fields of a STAC Item that a run uses; all other fields are ignored.

STAC Item 1.0 and 1.1; the extensions raster 1.x (``raster:bands``) and 2.x (``bands``), and eo 1.x and 2.x.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import STAC_ASSETS, STAC_BANDS, STAC_ITEM_BYTES, STAC_TEXT
from misgnet_runtime.raster.metadata import parse_time
from misgnet_runtime.storage.schema import JSON_ERRORS

# Without control characters, which do not belong in messages.
Text = Annotated[str, Meta(max_length=STAC_TEXT, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]
Number = Annotated[float, Meta(gt=-1e30, lt=1e30)]
NoData = Number | Literal["nan", "inf", "-inf"]
_FRACTION = re.compile(r"\.(\d+)")


class _Used(msgspec.Struct, frozen=True, kw_only=True):
    """Base class of the parts of an item. Other fields of any extension may stand beside those that are used."""


class _Values(_Used, frozen=True, kw_only=True, rename={"scale_2": "raster:scale", "offset_2": "raster:offset"}):
    """What may be stated about the values of one band, or of all bands of an asset."""

    data_type: Text | None = None
    nodata: NoData | None = None
    unit: Text | None = None
    scale_2: Number | None = None  # raster 2.x
    offset_2: Number | None = None


class Band(_Values, frozen=True, kw_only=True, rename={"common_name_2": "eo:common_name"}):
    """One band, as listed in ``bands``, ``raster:bands`` or ``eo:bands``."""

    name: Text | None = None
    common_name: Text | None = None  # eo 1.x
    common_name_2: Text | None = None  # eo 2.x
    scale: Number | None = None  # raster 1.x
    offset: Number | None = None


Bands = Annotated[tuple[Band, ...], Meta(max_length=STAC_BANDS)]


class Asset(_Values, frozen=True, kw_only=True, rename={"raster_bands": "raster:bands", "eo_bands": "eo:bands"}):
    """One file of an item."""

    href: Text
    type: Text | None = None  # media type
    roles: Annotated[tuple[Text, ...], Meta(max_length=STAC_BANDS)] | None = None
    bands: Bands = ()
    raster_bands: Bands = ()
    eo_bands: Bands = ()


class _Properties(_Used, frozen=True, kw_only=True):
    datetime: Text | None = None
    start_datetime: Text | None = None


class Item(_Used, frozen=True, kw_only=True):
    """A STAC Item."""

    type: Literal["Feature"]
    stac_version: Text
    id: Text
    properties: _Properties
    assets: Annotated[dict[Text, Asset], Meta(max_length=STAC_ASSETS)]

    @property
    def acquired(self) -> datetime | None:
        """When the image was taken, or when that began; None if the item does not state it."""
        return parse_time(_six_digits(self.properties.datetime or self.properties.start_datetime))


def parse_item(content: bytes, name: str) -> Item:
    """Parses the JSON text of an item; ``name`` names it in messages.

    Raises:
        InputError: The text is too large, is not a STAC Item, or has a field of a wrong type.
    """
    if len(content) > STAC_ITEM_BYTES:
        raise InputError(f"STAC Item {name} has more than {STAC_ITEM_BYTES >> 20} MiB; check that it is an Item")
    try:
        item = msgspec.json.decode(content, type=Item)
    except JSON_ERRORS as error:
        raise InputError(f"{name} is not a valid STAC Item: {error}; expected the JSON file of one Item") from error
    if (item.properties.datetime or item.properties.start_datetime) and item.acquired is None:
        raise InputError(f"STAC Item {name} has an invalid datetime; expected a form such as 2026-05-01T10:20:31Z")
    return item


def _six_digits(time: str | None) -> str | None:
    """Returns a time with six digits after the point, the only form besides three that Python 3.10 parses."""
    return time and _FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", time, count=1)
