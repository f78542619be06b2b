"""Converts what a caller has for the two dates of a pair (arrays, Pillow images, paths) to the network's samples."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.tiled import check_pair
from misgnet_runtime.jobs.image import warn_of_images
from misgnet_runtime.log import EventLog
from misgnet_runtime.pixels import PixelFormat
from misgnet_runtime.raster.images import from_pillow, read_image, read_pair
from misgnet_runtime.raster.reader import neutralised

# One date's image, as :meth:`BundleSession.predict` takes it.
Date: TypeAlias = NDArray[Any] | PIL.Image.Image | str | os.PathLike[str]


@dataclass(frozen=True)
class ChangeMap:
    """Predicted change between two images. The arrays belong to the caller.

    If either date was a masked array, ``probability`` and ``mask`` are masked arrays too: masked where a band of either
    date is, with NaN and False below the mask.

    Attributes:
        probability: Probability of change, float32 (H, W).
        mask: Whether the probability exceeds the threshold, bool (H, W).
        valid: Whether both dates have data, bool (H, W).
    """

    probability: NDArray[np.float32]
    mask: NDArray[np.bool_]
    valid: Mask

    @classmethod
    def of(cls, probability: NDArray[np.float32], threshold: float, valid: Mask | None) -> ChangeMap:
        """Applies a threshold to probabilities (H, W); ``valid``: None if neither date was a masked array."""
        if valid is None:
            return cls(probability, probability > threshold, np.ones(probability.shape, np.bool_))
        probability[~valid] = np.nan
        mask: NDArray[np.bool_] = np.ma.MaskedArray(probability > threshold, mask=~valid)
        return cls(np.ma.MaskedArray(probability, mask=~valid), mask, valid)


def read_dates(before: Date, after: Date, pixels: PixelFormat, log: EventLog) -> tuple[Image, Image, Mask | None]:
    """Returns both dates, (H, W, C), and where both have data, bool (H, W); None if neither is a masked array.

    Pixels without data in either date have the format's neutral values in both, as in scenes.

    Raises:
        InputError: A date is none of the accepted types or does not have the format, or the two differ in size.
    """
    if isinstance(before, (str, os.PathLike)) and isinstance(after, (str, os.PathLike)):
        paths = Path(before), Path(after)
        images = read_pair(*paths, pixels)
        warn_of_images(*paths, log, pixels)
        return *images, None
    first, second = _read_date(before, "before", pixels), _read_date(after, "after", pixels)
    check_pair(first, second, pixels)
    masked = [date for date in (before, after) if isinstance(date, np.ma.MaskedArray)]
    if not masked:
        return first, second, None
    valid = ~np.any([np.ma.getmaskarray(date).any(axis=-1) for date in masked], axis=0)
    return neutralised(first, valid, pixels.neutral), neutralised(second, valid, pixels.neutral), valid


def _read_date(given: Date, date: str, pixels: PixelFormat) -> Image:
    """Reads one date, "before" or "after", as (H, W, C)."""
    if isinstance(given, (str, os.PathLike)):
        return read_image(Path(given), pixels)
    if isinstance(given, PIL.Image.Image):
        return from_pillow(given, pixels, f"the image '{date}'")
    if not isinstance(given, np.ndarray):
        raise InputError(
            f"the image '{date}' is a {type(given).__module__}.{type(given).__qualname__}; pass an array, "
            f"{pixels.samples} (H, W, {pixels.bands}), a Pillow image or a path"
        )
    array: NDArray[Any] = np.ma.getdata(given)
    if array.dtype != pixels.samples or array.ndim != 3 or array.shape[2] != pixels.bands or not array.size:
        raise InputError(
            f"the image '{date}' is {array.dtype} {array.shape}; it must be {pixels.samples} "
            f"(H, W, {pixels.bands}){_advice(array, pixels)}"
        )
    return array


def _advice(array: NDArray[Any], pixels: PixelFormat) -> str:
    """Returns what to do about an array of another form, if its form says so."""
    bands = pixels.bands
    if array.ndim == 2 and bands == 1:
        return ": pass image[..., None]"
    if array.ndim == 3 and array.shape[2] != bands:
        if array.shape[0] == bands:
            return ": pass numpy.moveaxis(image, 0, -1)"
        if (bands, array.shape[2]) == (3, 4):
            return ": pass image[..., :3] if the fourth band is alpha"
    if array.dtype != pixels.samples:
        return "; values are not rescaled, because their meaning would be a guess: convert them as for the training"
    return ""
