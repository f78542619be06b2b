"""Converts stored values to 8-bit RGB by declared rules, never by guesses; pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import RgbImage
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.metadata import RGB, UNSTATED, BandMetadata


@dataclass(frozen=True)
class Scaling:
    """The bands that are red, green and blue, and how their values become brightness."""

    bands: tuple[int, int, int]
    scale: tuple[float, float, float] | None  # value * scale + offset is 0 for black, 1 for white; None: 8-bit as is
    offset: tuple[float, float, float]
    source: str  # where the numbers come from

    def __str__(self) -> str:
        bands = ",".join(map(str, self.bands))
        if self.scale is None:
            return f"bands {bands}, 8-bit values as they are"
        numbers = (",".join(f"{x:.6g}" for x in part) for part in (self.scale, self.offset))
        return "bands {}, scale {}, offset {} ({})".format(bands, *numbers, self.source)

    def apply(self, values: NDArray[Any]) -> RgbImage:
        """Converts (3, h, W) of any real type to uint8 (h, W, 3); NaN becomes 0."""
        if self.scale is None:
            return np.moveaxis(values.astype(np.uint8, copy=False), 0, 2)
        wide = np.result_type(values.dtype, np.float32)
        scale, offset = (255 * np.array(part, wide)[:, None, None] for part in (self.scale, self.offset))
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.nan_to_num(np.clip(values * scale + offset, 0, 255))
        return np.moveaxis(np.rint(scaled).astype(np.uint8), 0, 2)


def choose_bands(declared: Declared, colours: Sequence[str], alpha: int | None, name: str) -> tuple[int, int, int]:
    """Returns the red, green and blue bands.

    These are the declared bands, else the bands that the file calls red, green and blue, else all three bands of a
    raster with undescribed bands, not counting its alpha band ``alpha`` (from 1).

    Raises:
        UsageError: A declared band does not exist.
        InputError: The bands cannot be determined.
    """
    if declared.bands is not None:
        red, green, blue = (int(band) for band in declared.bands)
        if max(red, green, blue) > len(colours):
            bands = plural(len(colours), "band")
            raise UsageError(f"band {max(red, green, blue)} was requested, but {name} has {bands}")
        return red, green, blue
    stated = [[band for band, colour in enumerate(colours, 1) if colour == wanted] for wanted in RGB]
    if all(len(bands) == 1 for bands in stated):
        return stated[0][0], stated[1][0], stated[2][0]
    others = [band for band in range(1, len(colours) + 1) if band != alpha]
    if len(others) == 3 and all(colours[band - 1] in UNSTATED for band in others):
        return others[0], others[1], others[2]
    shown = ", ".join(colours[:8]) + ", ..." * (len(colours) > 8)
    described = "" if set(colours) <= {*UNSTATED, "alpha"} else f" that the file calls {shown}"
    raise InputError(
        f"raster {name} has {plural(len(colours), 'band')}{described}; specify the red, green and blue bands: "
        "--bands 3,2,1, or --before-bands and --after-bands"
    )


def declared_scaling(
    declared: Declared, bands: tuple[int, int, int], dtype: str, stated: BandMetadata, name: str
) -> Scaling:
    """Returns the declared scaling, independent of the pixel values.

    Raises:
        InputError: No scaling is declared, and the values are not 8-bit or the file's metadata demands a scaling.
    """
    full = 2 ** (stated.bits or 8) - 1
    if declared.scale is None and declared.offset is None:
        if dtype == "uint8" and not stated.scaled and not stated.inverted:
            white = _three(1 / full) if stated.bits else None
            return Scaling(bands, white, (0, 0, 0), f"{stated.bits or 8}-bit")
        what = f"{dtype} with {stated.values()} in its tags" if stated.scaled or stated.inverted else dtype
        raise InputError(
            f"raster {name} contains {what}, and its conversion to brightness is not declared; declare --scale and "
            "--offset (stored value * scale + offset is 0 for black, 1 for white), or use --stretch 2,98 "
            "(percentiles of each band); for one date only: --before-scale, --after-stretch, ..."
        )
    default = 1 / full if dtype == "uint8" else 1.0
    return Scaling(bands, _three(declared.scale or (default,)), _three(declared.offset or (0.0,)), "declared")


def check_stretch(stated: BandMetadata, name: str) -> None:
    """Raises InputError if low stored values are bright by the file's metadata: a stretch would invert the image."""
    if stated.inverted or min(stated.scales) <= 0:
        raise InputError(
            f"raster {name} states {stated.values()}, so a stretch would invert its brightness; declare --scale and "
            "--offset"
        )


def stretched(bands: tuple[int, int, int], values: NDArray[Any], percentiles: tuple[float, ...], name: str) -> Scaling:
    """Returns the scaling that maps two percentiles of each band of ``values`` (3, N) to black and white.

    Raises InputError if there are no values, or the two percentiles of a band are equal.
    """
    low_high = f"{percentiles[0]:g} and {percentiles[1]:g}"
    if not values.size:
        raise InputError(
            f"raster {name} has no data at the sampled windows, so it cannot be stretched; declare --scale"
        )
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
