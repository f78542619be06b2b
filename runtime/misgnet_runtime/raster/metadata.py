"""What a GeoTIFF says of the meaning of its pixels: honoured, or refused with what to do; never ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.geotiff import has_place
from misgnet_runtime.raster.tiff import ORIENTATION, PHOTOMETRIC, read_header

RGB = ("red", "green", "blue")
UNSTATED = ("gray", "undefined")  # what GDAL says of a band of which the file says nothing
_REFUSED = {  # TIFF's PhotometricInterpretation
    3: ("palette indices", "gdal_translate -expand rgb makes RGB of them"),
    5: ("CMYK inks", "convert it to RGB with its colour profile"),
    8: ("CIE L*a*b* colours", "convert it to RGB"),
    9: ("ICC L*a*b* colours", "convert it to RGB"),
    10: ("ITU L*a*b* colours", "convert it to RGB"),
    32803: ("a colour filter array", "develop it to RGB"),
    34892: ("linear raw values", "develop it to RGB"),
    32844: ("logarithmic luminance", "convert it to RGB"),
    32845: ("logarithmic luminance", "convert it to RGB"),
}


@dataclass(frozen=True)
class Statement:
    """What a file says of the bands that are used.

    Attributes:
        colours: Colour of each band by GDAL's name; "undefined" where the file says nothing.
        scales, offsets: What stored values are multiplied by, and what is added to that, for each band.
        bits: Bits of a value that are used; None where it is all of the type's.
        inverted: Whether 0 is white.
    """

    colours: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    bits: int | None
    inverted: bool

    @property
    def scaled(self) -> bool:
        """Whether the file says that stored values are to be scaled."""
        return any(scale != 1 for scale in self.scales) or any(offset != 0 for offset in self.offsets)

    def values(self) -> str:
        """What is said of the values, for a message."""
        said = []
        if self.scaled:
            numbers = (",".join(f"{x:.6g}" for x in part) for part in (self.scales, self.offsets))
            said.append("scale {} and offset {}".format(*numbers))
        if self.bits:
            said.append(f"{self.bits} bits per value")
        return " and ".join([*said, *["0 is white"] * self.inverted]) or "nothing"


def statement(dataset: Any, bands: tuple[int, ...], colours: Sequence[str]) -> Statement:
    """What the file of an open dataset, not of a warped one, says of some of its bands (from 1).

    ``colours``: GDAL's name of each of its bands'.
    """
    bits = [dataset.tags(band, ns="IMAGE_STRUCTURE").get("NBITS") for band in bands]
    whole = [int(b) for b in bits if b and b.isdigit()]
    real = dataset.dtypes[bands[0] - 1].startswith("float")
    return Statement(
        tuple(colours[band - 1] for band in bands),
        tuple(float(dataset.scales[band - 1]) for band in bands),
        tuple(float(dataset.offsets[band - 1]) for band in bands),
        min(whole) if whole and not real else None,  # float16 is told by its bits, and is read as what it is
        dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES",
    )


def check_interpretation(dataset: Any, path: Path) -> None:
    """Check what cannot be honoured by reading pixels as they are stored.

    Raises:
        InputError: Pixels are no brightness of red, green and blue, are turned by an orientation tag, are placed by
            ground control points or RPCs alone, are complex numbers or of several types, or the file holds several
            images.
    """
    header = read_header(path)
    if header.pages > 1:
        raise InputError(
            f"raster {path} holds {header.pages} images, and only the first would be read; write the one that is meant "
            f"to a file of its own: gdal_translate GTIFF_DIR:1:{path.name} ..."
        )
    if (turned := header.number(ORIENTATION, 1)) != 1:
        raise InputError(
            f"raster {path} has orientation {turned} in its TIFF tags, which GDAL does not apply; turn its pixels to "
            "orientation 1 (top left) and remove the tag"
        )
    photometric = header.number(PHOTOMETRIC, 1)
    if photometric in _REFUSED:
        what, advice = _REFUSED[photometric]
        raise InputError(f"raster {path} holds {what}, not brightness of red, green and blue; {advice}")
    if photometric == 6 and [colour.name for colour in dataset.colorinterp[:3]] != list(RGB):
        raise InputError(f"raster {path} holds YCbCr colours that GDAL does not convert; convert it to RGB")
    _check_transform(dataset, path)
    _check_types(dataset, path)


def _check_types(dataset: Any, path: Path) -> None:
    if kinds := {dtype for dtype in dataset.dtypes if np.dtype(_numpy_name(dtype)).kind not in "uif"}:
        raise InputError(f"raster {path} holds {' and '.join(sorted(kinds))}; a date has real numbers")
    if len(set(dataset.dtypes)) > 1:
        raise InputError(
            f"raster {path} mixes {' and '.join(sorted(set(dataset.dtypes)))}; a date has one type of values"
        )


def _numpy_name(dtype: str) -> str:
    return "complex64" if dtype.startswith("complex") else dtype


def _check_transform(dataset: Any, path: Path) -> None:
    """Refuse a raster that only seems not to be georeferenced, or whose transform is nonsense."""
    transform = dataset.transform
    if not has_place(transform) and not transform.is_identity:
        raise InputError(f"raster {path} has the transform {tuple(transform)[:6]}, which has no inverse")
    if not all(map(isfinite, (*transform, *~transform))):
        raise InputError(f"raster {path} has the transform {tuple(transform)[:6]}, which is not finite")
    if has_place(transform):
        return
    kind = "ground control points" if dataset.gcps[0] else "RPCs" if dataset.rpcs is not None else None
    if kind:
        raise InputError(
            f"raster {path} is georeferenced by {kind} in place of a transform; warp both dates to one grid first: "
            f"gdalwarp {'-rpc ' if kind == 'RPCs' else ''}-t_srs EPSG:..., which writes a transform"
        )


def acquired(dataset: Any) -> datetime | None:
    """When the image of an open dataset was taken, as its metadata says; None where they do not."""
    for tags in (dataset.tags(ns="IMAGERY"), dataset.tags()):
        for name in ("ACQUISITIONDATETIME", "TIFFTAG_DATETIME"):
            if (found := parse_time(tags.get(name))) is not None:
                return found
    return None


def parse_time(text: str | None) -> datetime | None:
    """A time as TIFF, EXIF, ISO 8601 and GDAL write it, UTC where it names no zone; None for anything else."""
    text = (text or "").strip().rstrip("Z").strip()
    if text[4:5] == text[7:8] == ":":
        text = f"{text[:4]}-{text[5:7]}-{text[8:]}"
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
