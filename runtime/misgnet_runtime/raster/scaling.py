"""Converts stored values to the samples of a network by declared rules, never by guesses; pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Image
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.pixels import LARGEST, RGB8, SAMPLE_BYTES, PixelFormat, Samples
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.metadata import RGB, UNSTATED, BandMetadata

_MEANING: dict[Samples, str] = {"uint8": "brightness", "uint16": "16-bit samples"}


@dataclass(frozen=True)
class Scaling:
    """The C bands that are used, in the order of the network's, and how their values become samples."""

    bands: tuple[int, ...]
    scale: tuple[float, ...] | None  # value * scale + offset is 0 for black, 1 for the largest sample; None: as stored
    offset: tuple[float, ...]
    source: str  # where the numbers come from
    samples: Samples = "uint8"

    def __str__(self) -> str:
        bands = ",".join(map(str, self.bands))
        if self.scale is None:
            return f"bands {bands}, {8 * SAMPLE_BYTES[self.samples]}-bit values as they are"
        numbers = (",".join(f"{x:.6g}" for x in part) for part in (self.scale, self.offset))
        return "bands {}, scale {}, offset {} ({})".format(bands, *numbers, self.source)

    def apply(self, values: NDArray[Any]) -> Image:
        """Converts (C, h, w) of any real type to samples (h, w, C); NaN becomes 0."""
        dtype: np.dtype[np.unsignedinteger[Any]] = np.dtype(self.samples)
        if self.scale is None:
            return np.moveaxis(values.astype(dtype, copy=False), 0, 2)
        wide, largest = np.result_type(values.dtype, np.float32), LARGEST[self.samples]
        scale, offset = (largest * np.array(part, wide)[:, None, None] for part in (self.scale, self.offset))
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.nan_to_num(np.clip(values * scale + offset, 0, largest))
        return np.moveaxis(np.rint(scaled).astype(dtype), 0, 2)


def choose_bands(
    declared: Declared, colours: Sequence[str], alpha: int | None, name: str, pixels: PixelFormat = RGB8
) -> tuple[int, ...]:
    """Returns the bands (from 1) of a raster that the network reads, in its order.

    These are the declared bands. By default, they are those that the file calls red, green and blue, or else all three
    bands of a raster with undescribed bands; for a network of another number of bands, all bands of the raster. The
    alpha band ``alpha`` is not counted.

    Raises:
        UsageError: A declared band does not exist, or their number is not the network's.
        InputError: The bands cannot be determined.
    """
    if declared.bands is not None:
        return _declared_bands(declared.bands, len(colours), name, pixels)
    others = [band for band in range(1, len(colours) + 1) if band != alpha]
    if pixels.bands != 3:
        if len(others) != pixels.bands:
            raise _wrong_count(len(others), alpha, name, pixels)
        return tuple(others)
    stated = [[band for band, colour in enumerate(colours, 1) if colour == wanted] for wanted in RGB]
    if all(len(bands) == 1 for bands in stated):
        return stated[0][0], stated[1][0], stated[2][0]
    if len(others) == 3 and all(colours[band - 1] in UNSTATED for band in others):
        return tuple(others)
    if len(others) < 3:
        raise _too_few(len(others), name, pixels, ", or repeat a grey band with --bands 1,1,1")
    shown = ", ".join(colours[:8]) + ", ..." * (len(colours) > 8)
    described = "" if set(colours) <= {*UNSTATED, "alpha"} else f" that the file calls {shown}"
    raise InputError(
        f"raster {name} has {plural(len(colours), 'band')}{described}; specify the red, green and blue bands: "
        "--bands 3,2,1, or --before-bands and --after-bands"
    )


def assets_as_bands(count: int, name: str, pixels: PixelFormat = RGB8) -> tuple[int, ...]:
    """Returns the bands of ``count`` assets of one band each, which are in the network's order.

    Raises UsageError if the network reads another number of bands.
    """
    if count != pixels.bands:
        raise UsageError(
            f"--assets names {count} assets of {name}, and the network reads {plural(pixels.bands, 'band')}; name one "
            "asset for each, in the network's order"
        )
    return tuple(range(1, count + 1))


def check_contradictions(found: Sequence[tuple[str, str]], declared: Declared) -> None:
    """Raises InputError for a contradiction of item and file that no declared option settles.

    ``found``: the option that settles each, "bands" or "scale", and the message.
    """
    settled = {"bands": declared.bands, "scale": declared.scale or declared.offset or declared.stretch}
    for option, problem in found:
        if not settled[option]:
            raise InputError(problem)


def _declared_bands(declared: Sequence[float], count: int, name: str, pixels: PixelFormat) -> tuple[int, ...]:
    bands = tuple(int(band) for band in declared)
    if len(bands) != pixels.bands:
        raise UsageError(
            f"--bands {','.join(map(str, bands))} names {plural(len(bands), 'band')}, and the network reads "
            f"{pixels.bands}; name one band of the raster for each, in the network's order"
        )
    if max(bands) > count:
        raise UsageError(f"band {max(bands)} was requested, but {name} has {plural(count, 'band')}")
    return bands


def _too_few(found: int, name: str, pixels: PixelFormat, otherwise: str = "") -> InputError:
    return InputError(
        f"raster {name} has {plural(found, 'band')}, and the network reads {pixels}; pass the image with all "
        f"{pixels.bands} bands, not a label or a mask{otherwise}"
    )


def _wrong_count(found: int, alpha: int | None, name: str, pixels: PixelFormat) -> InputError:
    if found < pixels.bands:
        return _too_few(found, name, pixels)
    besides = f" besides its alpha band {alpha}" if alpha else ""
    example = ",".join(map(str, range(1, pixels.bands + 1)))
    return InputError(
        f"raster {name} has {plural(found, 'band')}{besides}, and the network reads {pixels.bands}; specify them in "
        f"the network's order, such as --bands {example}, or --before-bands and --after-bands"
    )


def declared_scaling(
    declared: Declared, bands: tuple[int, ...], dtype: str, stated: BandMetadata, *, name: str,
    pixels: PixelFormat = RGB8,
) -> Scaling:  # fmt: skip
    """Returns the declared scaling of values of type ``dtype``, independent of the pixel values.

    Raises:
        InputError: No scaling is declared, and the values have another type than the network's samples or the file's
            metadata demand a scaling.
        UsageError: The number of declared values is neither 1 nor that of the bands.
    """
    count, samples = pixels.bands, pixels.samples
    full = 2 ** (stated.bits or 8 * np.dtype(dtype).itemsize) - 1
    if declared.scale is None and declared.offset is None:
        if stated.stated and stated.scaled and not stated.inverted:
            return _stated_scaling(bands, stated, name, samples)
        if dtype == samples and not stated.scaled and not stated.inverted:
            # Values of fewer than 8 bits are brightness; those of fewer than 16 bits are measurements, as trained on.
            white = _per_band((1 / full,), count) if stated.bits and samples == "uint8" else None
            return Scaling(bands, white, (0.0,) * count, f"{stated.bits or 8}-bit", samples)
        what = f"{dtype} with {stated.values()} in its tags" if stated.scaled or stated.inverted else dtype
        most = "white" if samples == "uint8" else f"the largest sample, {pixels.largest}"
        raise InputError(
            f"raster {name} contains {what}, and its conversion to {_MEANING[samples]} is not declared; declare "
            f"--scale and --offset (stored value * scale + offset is 0 for black, 1 for {most}), or use --stretch 2,98 "
            "(percentiles of each band); for one date only: --before-scale, --after-stretch, ..."
        )
    default = 1 / full if dtype in ("uint8", samples) else 1.0
    scale, offset = declared.scale or (default,), declared.offset or (0.0,)
    for option, found in (("--scale", scale), ("--offset", offset)):
        if len(found) not in (1, count):
            raise UsageError(
                f"{option} has {len(found)} numbers, and the network reads {plural(count, 'band')}; give one number, "
                "or one for each band"
            )
    return Scaling(bands, _per_band(scale, count), _per_band(offset, count), "declared", samples)


def _stated_scaling(bands: tuple[int, ...], stated: BandMetadata, name: str, samples: Samples) -> Scaling:
    pairs = list(zip(stated.scales, stated.offsets, strict=True))
    if (1, 0) in pairs:
        raise InputError(
            f"{name} states {stated.values()} for bands {','.join(map(str, bands))}: not all are scaled, so the values "
            "of the others cannot be compared with them; declare --scale and --offset"
        )
    return Scaling(bands, stated.scales, stated.offsets, "from the STAC Item", samples)


def check_stretch(stated: BandMetadata, name: str) -> None:
    """Raises InputError if low stored values are bright by the file's metadata: a stretch would invert the image."""
    if stated.inverted or min(stated.scales) <= 0:
        raise InputError(
            f"raster {name} states {stated.values()}, so a stretch would invert its brightness; declare --scale and "
            "--offset"
        )


def stretched(
    bands: tuple[int, ...], values: NDArray[Any], percentiles: tuple[float, ...], name: str, samples: Samples = "uint8"
) -> Scaling:
    """Returns the scaling that maps two percentiles of each band of ``values`` (C, N) to black and the largest sample.

    Raises InputError if there are no values, or the two percentiles of a band are equal.
    """
    low_high = f"{percentiles[0]:g} and {percentiles[1]:g}"
    if not values.size:
        raise InputError(
            f"raster {name} has no data at the sampled windows, so it cannot be stretched; declare --scale"
        )
    low, high = np.array([np.percentile(band.astype(np.float64), percentiles) for band in values]).T
    for band, lower, upper in zip(bands, low, high, strict=True):
        if lower == upper:
            raise InputError(
                f"band {band} of {name} has {lower:g} at percentiles {low_high}, so it cannot be stretched; "
                "declare --scale and --offset"
            )
    scale = 1 / (high - low)
    offset = -low * scale
    return Scaling(bands, tuple(scale.tolist()), tuple(offset.tolist()), f"percentiles {low_high}", samples)


def _per_band(numbers: tuple[float, ...], count: int) -> tuple[float, ...]:
    return tuple(map(float, numbers)) if len(numbers) == count else (float(numbers[0]),) * count
