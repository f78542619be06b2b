"""What a user declares of a raster's pixels: bands, and how stored values become brightness. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import flag, option
from misgnet_runtime.parsers import numbers

PIXELS_PANEL = "GeoTIFF input: what its pixels are; nothing is guessed from values"
_three, _two = numbers(3, like="3,2,1"), numbers(2, like="2,98")


def _bands(text: str) -> tuple[float, ...]:
    found = _three(text)
    if not all(band >= 1 and band == int(band) for band in found):
        raise ValueError("bands are counted from 1")
    return found


def _percentiles(text: str) -> tuple[float, ...]:
    low, high = _two(text)
    if not 0 <= low < high <= 100:
        raise ValueError("it is two percentiles, the lower one first: 2,98")
    return low, high


# What became of them is recorded as the scaling that a date's raster gets.
_option: Any = partial(option, None, panel=PIXELS_PANEL, changes_output=True, recorded_as="the scaling")


@dataclass(frozen=True)
class Declared:
    """What is said of one date's raster; None where nothing is."""

    bands: tuple[float, ...] | None = _option(help="Which bands are red, green and blue: 3,2,1.", parse=_bands)
    scale: tuple[float, ...] | None = _option(
        help="value * scale + offset is 0 for black, 1 for white; one number or three.",
        parse=numbers(1, 3, like="0.0001"),
    )
    offset: tuple[float, ...] | None = _option(
        help="One number or three (default: 0).", parse=numbers(1, 3, like="-0.1")
    )
    stretch: tuple[float, ...] | None = _option(
        help="Instead: percentiles of each band that become black and white: 2,98.", parse=_percentiles
    )
    shared: frozenset[str] = field(default=frozenset(), compare=False, repr=False)  # what is said of both dates at once

    def check(self, prefix: str = "") -> None:
        """Raise UsageError for both a scaling and a stretch; ``prefix``: of the options' names, "before_", say."""
        if self.stretch and (self.scale or self.offset):
            raise UsageError(
                f"{flag(prefix + 'stretch')} finds scale and offset by itself; leave it out, or leave them out"
            )

    def over(self, common: Declared) -> Declared:
        """What is said of this date alone, and else of both: a scaling takes the place of a stretch, and back."""
        scaled = self.scale or self.offset
        return Declared(
            self.bands or common.bands,
            self.scale or (None if self.stretch else common.scale),
            self.offset or (None if self.stretch else common.offset),
            self.stretch or (None if scaled else common.stretch),
            frozenset(name for name in ("bands", "scale", "offset") if getattr(self, name) is None),
        )
