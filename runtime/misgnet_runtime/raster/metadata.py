"""Reads a GeoTIFF's metadata about its pixels. Metadata that cannot be honoured raises an error; none is ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import isfinite
from typing import Any

import numpy as np

from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.geotiff import is_georeferencing
from misgnet_runtime.raster.source import RasterFile
from misgnet_runtime.raster.tiff import ORIENTATION, PHOTOMETRIC, header_of

RGB = ("red", "green", "blue")
UNSTATED = ("gray", "undefined")  # GDAL's colour of bands that the file does not describe
_REFUSED = {  # TIFF's PhotometricInterpretation
    3: "palette indices", 5: "CMYK inks", 8: "CIE L*a*b* colours", 9: "ICC L*a*b* colours", 10: "ITU L*a*b* colours",
    32803: "a colour filter array", 34892: "linear raw values", 32844: "logarithmic luminance",
    32845: "logarithmic luminance",
}  # fmt: skip
_PALETTE, _YCBCR = 3, 6


@dataclass(frozen=True, kw_only=True)
class BandMetadata:
    """A file's metadata about the bands that are used."""

    colours: tuple[str, ...]  # GDAL's names; "undefined": not in the file
    scales: tuple[float, ...]  # factor of stored values, per band
    offsets: tuple[float, ...]  # added to the scaled values, per band
    bits: int | None  # used bits of each value; None: all bits of the type
    inverted: bool  # whether 0 is white
    stated: bool = False  # whether a STAC Item states colours, scales and offsets

    @property
    def scaled(self) -> bool:
        """Whether the file demands that stored values are scaled."""
        return any(scale != 1 for scale in self.scales) or any(offset != 0 for offset in self.offsets)

    def values(self) -> str:
        """Describes the metadata about values for a message; "nothing" if there is none."""
        parts = []
        if self.scaled:
            numbers = (",".join(f"{x:.6g}" for x in part) for part in (self.scales, self.offsets))
            parts.append("scale {} and offset {}".format(*numbers))
        if self.bits:
            parts.append(f"{self.bits} bits per value")
        return " and ".join([*parts, *["0 is white"] * self.inverted]) or "nothing"


def band_metadata(dataset: Any, bands: tuple[int, ...], colours: Sequence[str]) -> BandMetadata:
    """Reads the metadata about ``bands`` (from 1) of an open dataset, which must not be a warped one.

    ``colours`` are GDAL's names of the colours of all its bands.
    """
    bits = [dataset.tags(band, ns="IMAGE_STRUCTURE").get("NBITS") for band in bands]
    whole = [int(b) for b in bits if b and b.isdigit()]
    real = dataset.dtypes[bands[0] - 1].startswith("float")
    return BandMetadata(
        colours=tuple(colours[band - 1] for band in bands),
        scales=tuple(float(dataset.scales[band - 1]) for band in bands),
        offsets=tuple(float(dataset.offsets[band - 1]) for band in bands),
        bits=min(whole) if whole and not real else None,  # for floats, NBITS marks float16, which GDAL reads correctly
        inverted=dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES",
    )


def together(bands: Sequence[BandMetadata]) -> BandMetadata:
    """Returns the metadata of several files with one band each, as if they were one file's."""
    bits = [band.bits for band in bands]
    return BandMetadata(
        colours=tuple(colour for band in bands for colour in band.colours),
        scales=tuple(scale for band in bands for scale in band.scales),
        offsets=tuple(offset for band in bands for offset in band.offsets),
        bits=None if None in bits else max(found for found in bits if found),
        inverted=any(band.inverted for band in bands),
        stated=any(band.stated for band in bands),
    )


def check_interpretation(dataset: Any, source: RasterFile, pixels: PixelFormat = RGB8) -> None:
    """Checks a file for metadata that this project does not apply to stored pixels.

    ``pixels`` is what the network reads, for messages.

    Raises:
        InputError: Pixels are not brightness or measurements of bands, are rotated by an orientation tag, are
            georeferenced only by ground control points or RPCs, are complex numbers or of several types, or the file
            contains several images.
    """
    with source.open() as file:
        header = header_of(file, source)
    if header.pages > 1:
        raise InputError(
            f"raster {source} contains {header.pages} images, and only the first would be read; write the one to use "
            f"to its own file: gdal_translate GTIFF_DIR:1:{source.name} ..."
        )
    if (turned := header.number(ORIENTATION, 1)) != 1:
        raise InputError(
            f"raster {source} has orientation {turned} in its TIFF tags, which GDAL does not apply; rotate its pixels "
            "to orientation 1 (top left) and remove the tag"
        )
    photometric = header.number(PHOTOMETRIC, 1)
    if photometric in _REFUSED:
        raise _not_of_bands(_REFUSED[photometric], photometric, source, pixels)
    if photometric == _YCBCR and [colour.name for colour in dataset.colorinterp[:3]] != list(RGB):
        raise _not_of_bands("YCbCr colours that GDAL does not convert", photometric, source, pixels)
    _check_transform(dataset, source)
    _check_types(dataset, source)


def _not_of_bands(what: str, photometric: int, source: RasterFile, pixels: PixelFormat) -> InputError:
    """Returns the error for values that are not those of ``pixels``, with what to do for a network that reads these."""
    if not pixels.is_rgb8:
        # Such a tag is often wrong: a program wrote it because the file has as many bands as the colours.
        advice = (
            f"if it holds the values of {plural(pixels.bands, 'band')} and only the tag is wrong, rewrite it with "
            "gdal_translate -co PHOTOMETRIC=MINISBLACK; else pass the raster that these colours were made of"
        )
    elif photometric == _PALETTE:
        advice = "convert them with gdal_translate -expand rgb; if they are classes, pass the image instead"
    else:
        advice = "convert it to 8-bit RGB in an image program, since GDAL copies these values as they are"
    return InputError(f"raster {source} contains {what}, and the network reads {pixels}; {advice}")


def _check_types(dataset: Any, source: RasterFile) -> None:
    if kinds := {dtype for dtype in dataset.dtypes if np.dtype(_numpy_name(dtype)).kind not in "uif"}:
        raise InputError(f"raster {source} contains {' and '.join(sorted(kinds))}; convert its values to real numbers")
    if len(set(dataset.dtypes)) > 1:
        raise InputError(
            f"raster {source} mixes {' and '.join(sorted(set(dataset.dtypes)))}; convert its bands to one data type"
        )


def _numpy_name(dtype: str) -> str:
    return "complex64" if dtype.startswith("complex") else dtype


def _check_transform(dataset: Any, source: RasterFile) -> None:
    """Raises InputError if the transform is invalid, or if the raster is georeferenced by other means only."""
    transform = dataset.transform
    if not is_georeferencing(transform) and not transform.is_identity:
        raise InputError(f"raster {source} has the transform {tuple(transform)[:6]}, which has no inverse")
    if not all(map(isfinite, (*transform, *~transform))):
        raise InputError(f"raster {source} has the transform {tuple(transform)[:6]}, which is not finite")
    if is_georeferencing(transform):
        return
    kind = "ground control points" if dataset.gcps[0] else "RPCs" if dataset.rpcs is not None else None
    if kind:
        raise InputError(
            f"raster {source} is georeferenced by {kind} instead of a transform; warp both dates to one grid first: "
            f"gdalwarp {'-rpc ' if kind == 'RPCs' else ''}-t_srs EPSG:..., which writes a transform"
        )


def acquired(dataset: Any) -> datetime | None:
    """Returns when the image of an open dataset was taken, from its metadata, or None."""
    for tags in (dataset.tags(ns="IMAGERY"), dataset.tags()):
        for name in ("ACQUISITIONDATETIME", "TIFFTAG_DATETIME"):
            if (found := parse_time(tags.get(name))) is not None:
                return found
    return None


def parse_time(text: str | None) -> datetime | None:
    """Parses a time in the formats of TIFF, EXIF, ISO 8601 and GDAL (default zone: UTC); None for anything else."""
    text = (text or "").strip().rstrip("Z").strip()
    if text[4:5] == text[7:8] == ":":
        text = f"{text[:4]}-{text[5:7]}-{text[8:]}"
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
