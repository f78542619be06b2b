"""Combines a file's metadata with what a STAC Item states about it; contradictions are errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Mask
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.metadata import UNSTATED, BandMetadata, band_metadata
from misgnet_runtime.raster.stated import Stated, StatedBand

_UNITLESS = ("", "1", "unitless", "dimensionless", "reflectance")  # units of values from 0 for black to 1 for white


@dataclass(frozen=True, kw_only=True)
class FileMetadata:
    """Metadata about all bands of one file: its own, completed by those that an item states."""

    colours: tuple[str, ...]  # GDAL's or the item's names; see UNSTATED
    nodata: float | None
    scales: tuple[float, ...]  # factor of stored values, per band
    offsets: tuple[float, ...]  # added to the scaled values, per band
    stated: bool = False  # whether an item describes the file
    contradictions: tuple[tuple[str, str], ...] = ()  # option that settles it, and the message

    def of_bands(self, dataset: Any, bands: tuple[int, ...]) -> BandMetadata:
        """Returns the metadata about ``bands`` (from 1) of the file's own dataset."""
        scales, offsets = (tuple(part[band - 1] for band in bands) for part in (self.scales, self.offsets))
        found = band_metadata(dataset, bands, self.colours)
        return replace(found, scales=scales, offsets=offsets, stated=self.stated)


def file_metadata(dataset: Any, stated: Stated | None, file: str) -> FileMetadata:
    """Reads the metadata of an open dataset, completed by what an item states.

    Raises:
        InputError: Item and file contradict each other in what no option declares: number of bands, type, nodata.
    """
    colours = tuple(colour.name for colour in dataset.colorinterp)
    scales, offsets = tuple(map(float, dataset.scales)), tuple(map(float, dataset.offsets))
    if stated is None:
        return FileMetadata(colours=colours, nodata=dataset.nodata, scales=scales, offsets=offsets)
    bands = stated.of(dataset.count, colours.index("alpha") + 1 if "alpha" in colours else None, file)
    nodata = _nodata(bands, dataset, stated, file)
    problems = [*_colour_problems(bands, colours, stated, file), *_scale_problems(bands, scales, offsets, stated, file)]
    return FileMetadata(
        colours=tuple(band.colour or colour for band, colour in zip(bands, colours, strict=True)),
        nodata=nodata,
        scales=tuple(scale if band.scale is None else band.scale for band, scale in zip(bands, scales, strict=True)),
        offsets=tuple(
            offset if band.offset is None else band.offset for band, offset in zip(bands, offsets, strict=True)
        ),
        stated=True,
        contradictions=tuple(problems),
    )


def is_data(values: NDArray[Any], nodata: Sequence[float | None]) -> Mask:
    """Returns which pixels of stored values, (B, h, w), have data, bool (h, w); ``nodata``: one value per band.

    NaN and Inf are no data. A pixel with a nodata value has no data if any band has it; for 8-bit values, where it may
    also be a colour, only if all bands have it.
    """
    valid: Mask = np.isfinite(values).all(axis=0)
    if all(_is_nan(value) for value in nodata):
        return valid
    same = [
        np.zeros(valid.shape, np.bool_) if _is_nan(value) else band == np.asarray(value).astype(band.dtype)
        for band, value in zip(values, nodata, strict=True)
    ]
    combined = np.logical_and if values.dtype == np.uint8 else np.logical_or
    return np.asarray(valid & ~combined.reduce(same), np.bool_)


def _is_nan(nodata: float | None) -> bool:
    return nodata is None or isnan(nodata)


def _nodata(bands: Sequence[StatedBand], dataset: Any, stated: Stated, file: str) -> float | None:
    """Checks types and nodata values; returns the value that holds for the file."""
    if wrong := {band.dtype for band in bands} - {None, dataset.dtypes[0]}:
        raise InputError(
            f"{stated.where} states {', '.join(map(str, wrong))}, but {file} contains {dataset.dtypes[0]}; correct the "
            "item"
        )
    found = list(dict.fromkeys(_shown(value) for band in bands if (value := band.nodata) is not None))
    own = dataset.nodata
    if len(found) > 1 or (found and own is not None and _shown(own) != found[0]):
        other = f"{file} states {_shown(own)}" if own is not None else "a GeoTIFF has one for all bands"
        raise InputError(
            f"{stated.where} states nodata {' and '.join(found)}, but {other}; correct the item, or rewrite the file: "
            "gdal_translate -a_nodata"
        )
    value = next((band.nodata for band in bands if band.nodata is not None), own)
    kind = np.dtype(dataset.dtypes[0])
    if value is not None and not _can_be(value, kind):
        raise InputError(f"{stated.where} states nodata {_shown(value)}, which no {kind} can be; correct the item")
    return value


def _can_be(value: float, kind: np.dtype[Any]) -> bool:
    if kind.kind == "f":
        return True
    info = np.iinfo(kind)
    return isfinite(value) and value == int(value) and info.min <= value <= info.max


def _colour_problems(
    bands: Sequence[StatedBand], colours: Sequence[str], stated: Stated, file: str
) -> list[tuple[str, str]]:
    wrong = [
        f"band {number} is {band.colour} according to {stated.where}, but {colour} according to {file}"
        for number, (band, colour) in enumerate(zip(bands, colours, strict=True), 1)
        if band.colour and colour not in (*UNSTATED, band.colour)
    ]
    return [("bands", f"{'; '.join(wrong)}; declare the bands: --bands, --before-bands, --after-bands")] * bool(wrong)


def _scale_problems(
    bands: Sequence[StatedBand], scales: Sequence[float], offsets: Sequence[float], stated: Stated, file: str
) -> list[tuple[str, str]]:
    """Returns a message if item and file state different scalings, or the item one of other values than brightness."""
    advice = "declare --scale and --offset (for one date: --before-scale, ...)"
    for number, (band, scale, offset) in enumerate(zip(bands, scales, offsets, strict=True), 1):
        found = scale if band.scale is None else band.scale, offset if band.offset is None else band.offset
        if (scale, offset) != (1, 0) and found != (scale, offset):
            shown = "scale {:.6g} and offset {:.6g}"
            return [("scale", f"{stated.where} states {shown.format(*found)} for band {number}, but {file} states "
                     f"{shown.format(scale, offset)}; {advice}")]  # fmt: skip
        if found != (1, 0) and band.unit is not None and band.unit.lower() not in _UNITLESS:
            return [("scale", f"{stated.where} states values in {band.unit} for band {number}, not from 0 for black to "
                     f"1 for white; {advice}")]  # fmt: skip
    return []


def _shown(value: float) -> str:
    return f"{value:.9g}"
