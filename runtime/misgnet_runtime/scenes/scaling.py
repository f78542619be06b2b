"""Stored values to 8-bit RGB, as declared and never guessed: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.images import RgbImage
from misgnet_runtime.scenes.options import Declared


@dataclass(frozen=True)
class Scaling:
    """Which bands are red, green and blue; ``value * scale + offset`` of each is 0 for black, 1 for white.

    Without ``scale`` the values are 8-bit and taken as they are. ``why``: who says so.
    """

    bands: tuple[int, int, int]
    scale: tuple[float, float, float] | None
    offset: tuple[float, float, float]
    why: str

    def __str__(self) -> str:
        bands = ",".join(map(str, self.bands))
        if self.scale is None:
            return f"bands {bands}, 8-bit values as they are"
        numbers = (",".join(f"{x:.6g}" for x in part) for part in (self.scale, self.offset))
        return "bands {}, scale {}, offset {} ({})".format(bands, *numbers, self.why)

    def apply(self, values: NDArray[Any]) -> RgbImage:
        """(3, h, W) of any real type -> uint8 (h, W, 3); what is NaN becomes 0."""
        if self.scale is None:
            return np.moveaxis(values.astype(np.uint8, copy=False), 0, 2)
        wide = np.result_type(values.dtype, np.float32)
        scale, offset = (255 * np.array(part, wide)[:, None, None] for part in (self.scale, self.offset))
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.nan_to_num(np.clip(values * scale + offset, 0, 255))
        return np.moveaxis(np.rint(scaled).astype(np.uint8), 0, 2)


def choose_bands(declared: Declared, count: int, alpha: int | None, name: str) -> tuple[int, int, int]:
    """Declared bands, or all of a raster that has three beside its ``alpha`` band (its number, from 1).

    UsageError for a band that is not there, InputError where nothing says which three are meant.
    """
    if declared.bands is None:
        colours = [band for band in range(1, count + 1) if band != alpha]
        if len(colours) != 3:
            raise InputError(
                f"raster {name} has {count} band{'s' * (count > 1)}; say which are red, green and blue: --bands 3,2,1, "
                "or --before-bands and --after-bands"
            )
        return colours[0], colours[1], colours[2]
    red, green, blue = (int(band) for band in declared.bands)
    if max(red, green, blue) > count:
        raise UsageError(f"band {max(red, green, blue)} was asked for, and {name} has {count}")
    return red, green, blue


def declared_scaling(declared: Declared, bands: tuple[int, int, int], dtype: str, name: str) -> Scaling:
    """The scaling that is declared without a look at the values; InputError without one, unless they are 8-bit."""
    if declared.scale is None and declared.offset is None:
        if dtype == "uint8":
            return Scaling(bands, None, (0, 0, 0), "8-bit")
        raise InputError(
            f"raster {name} holds {dtype}, and nothing says how its values become brightness; declare --scale and "
            "--offset (value * scale + offset is 0 for black, 1 for white), or ask for --stretch 2,98 "
            "(percentiles of each band); each also for one date: --before-scale, --after-stretch, ..."
        )
    default = 1 / 255 if dtype == "uint8" else 1.0
    return Scaling(bands, _three(declared.scale or (default,)), _three(declared.offset or (0.0,)), "declared")


def stretched(bands: tuple[int, int, int], values: NDArray[Any], percentiles: tuple[float, ...], name: str) -> Scaling:
    """The scaling that makes two percentiles of each band of ``values`` (3, N) black and white.

    InputError where there are no values, or a band's percentiles are one value.
    """
    low_high = f"{percentiles[0]:g} and {percentiles[1]:g}"
    if not values.size:
        raise InputError(f"raster {name} has no data where it was sampled, so it cannot be stretched; declare --scale")
    low, high = np.percentile(values.astype(np.float64), percentiles, axis=1)
    for band, lower, upper in zip(bands, low, high, strict=True):
        if lower == upper:
            raise InputError(
                f"band {band} of {name} has {lower:g} at percentiles {low_high}, so it cannot be stretched; "
                "declare --scale and --offset"
            )
    scale = 1 / (high - low)
    return Scaling(bands, _three(scale), _three(-low * scale), f"percentiles {low_high}")


def _three(numbers: Any) -> tuple[float, float, float]:
    red, green, blue = (float(x) for x in np.broadcast_to(np.asarray(numbers, np.float64), 3))
    return red, green, blue
