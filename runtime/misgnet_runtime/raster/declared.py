"""Options that declare a raster's bands, and how its stored values become samples. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import flag, option
from misgnet_runtime.parsers import numbers
from misgnet_runtime.pixels import MOST_BANDS

PIXELS_PANEL = "GeoTIFF input (bands and brightness are never guessed from pixel values)"
_COUNTS = range(1, MOST_BANDS + 1)
_some, _two = numbers(*_COUNTS, like="3,2,1"), numbers(2, like="2,98")


def _bands(text: str) -> tuple[float, ...]:
    found = _some(text)
    if not all(band >= 1 and band == int(band) for band in found):
        raise ValueError("bands are counted from 1")
    return found


def _percentiles(text: str) -> tuple[float, ...]:
    low, high = _two(text)
    if not 0 <= low < high <= 100:
        raise ValueError("expected two percentiles, the lower one first, for example 2,98")
    return low, high


# Outputs record the scaling that results from these options, not the options.
_option: Any = partial(option, None, panel=PIXELS_PANEL, changes_output=True, recorded_as="the scaling")


def _assets(text: str) -> tuple[str, ...]:
    found = tuple(word.strip() for word in text.split(","))
    if not all(found) or len(found) > MOST_BANDS:
        raise ValueError(f"expected 1 to {MOST_BANDS} names of assets, for example red,green,blue")
    return found


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The options of one date's raster; None: not given."""

    bands: tuple[float, ...] | None = _option(
        help="Bands of the raster in the order that the network reads them, such as 3,2,1 for red, green and blue "
        "(default: as named in the file; all bands if the network reads another number than 3).",
        parse=_bands,
        metavar="N[,N...]",
    )
    scale: tuple[float, ...] | None = _option(
        help="Factor of stored values: value * scale + offset is 0 for black, 1 for the largest sample (white). One "
        "number, or one per band (default: values of the type that the network reads as they are).",
        parse=numbers(*_COUNTS, like="0.0001"),
        metavar="X[,X...]",
    )
    offset: tuple[float, ...] | None = _option(
        help="Offset of stored values, see --scale; one number, or one per band (default: 0).",
        parse=numbers(*_COUNTS, like="-0.1"),
        metavar="X[,X...]",
    )
    stretch: tuple[float, ...] | None = _option(
        help="Instead of --scale: percentiles of each band that become black and the largest sample, such as 2,98 "
        "(default: none).",
        parse=_percentiles,
        metavar="LOW,HIGH",
    )
    assets: tuple[str, ...] | None = _option(
        help="Assets to read if a date is a STAC Item: one with all bands, or one for each band in the order that the "
        "network reads them, such as red,green,blue (default: the item's only GeoTIFF of pixel data).",
        parse=_assets,
        metavar="KEY[,KEY...]",
    )
    shared: frozenset[str] = field(default=frozenset(), compare=False, repr=False)  # names of options for both dates

    def check(self, prefix: str = "") -> None:
        """Raises UsageError if both a scaling and a stretch are given; ``prefix`` of the options, such as "before_"."""
        if self.stretch and (self.scale or self.offset):
            stretch, scale, offset = (flag(prefix + name) for name in ("stretch", "scale", "offset"))
            raise UsageError(
                f"{stretch} determines scale and offset itself; give either {stretch}, or {scale} and {offset}"
            )

    def over(self, common: Declared) -> Declared:
        """Returns these options, completed by the ``common`` ones of both dates.

        A scaling of this date replaces a common stretch, and vice versa.
        """
        scaled = self.scale or self.offset
        return Declared(
            bands=self.bands or common.bands,
            scale=self.scale or (None if self.stretch else common.scale),
            offset=self.offset or (None if self.stretch else common.offset),
            stretch=self.stretch or (None if scaled else common.stretch),
            assets=self.assets or common.assets,
            shared=frozenset(name for name in ("bands", "scale", "offset", "assets") if getattr(self, name) is None),
        )
