"""Checks names, sizes and headers of a pair before its files are read, in milliseconds for files of any size.

A file that is refused here is neither hashed nor processed. Processing opens the rasters again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from misgnet_runtime.errors import InputError
from misgnet_runtime.jobs.journal import check_room, raw_map
from misgnet_runtime.jobs.scene.inputs import check_readable
from misgnet_runtime.jobs.watch.pairing import File, FilePair
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.geotiff import bytes_of
from misgnet_runtime.raster.images import image_size
from misgnet_runtime.raster.reader import open_raster
from misgnet_runtime.storage.files import open_unlinked

_NAME_BYTES = 255  # maximum length of a file name if the system does not report one
_IMAGE_BYTES = 2 << 30  # limit for a PNG or JPEG file; Pillow opens at most 1.4 GiB of 16-bit RGBA pixels
_RASTER_LIMIT = 4, 1 << 30  # a raster file may have this factor times its pixels' bytes, plus this many bytes


def check_names(output: Path, outputs: Iterable[str]) -> None:
    """Raises InputError if an output, or a temporary file made for it, would have too long a name for ``output``."""
    most = _longest_name(output)
    for name in outputs:
        longest = max(_names_used_for(name), key=lambda found: len(os.fsencode(found)))
        if (size := len(os.fsencode(longest))) > most:
            raise InputError(
                f"the name of its output {name[:40]}... is too long: a temporary name takes {size} bytes, but at most "
                f"{most} are allowed here; rename the pair"
            )


def check_files(pair: FilePair, result: Path, max_unreadable: float, pixels: PixelFormat = RGB8) -> None:
    """Checks the headers and sizes of a pair's files.

    Args:
        pair: The pair.
        result: Path of the change raster to be written.
        max_unreadable: Maximum unreadable share of a raster in percent.
        pixels: The format that images are read in.

    Raises:
        InputError: A header cannot be read, a file is much larger than its header explains, or the disk of ``result``
            is too small for it.
        StorageError: The disk of ``result`` does not have enough free space at present.
        UnreadableError: A raster lacks more than ``max_unreadable`` percent of its data.
    """
    for date, file in zip(("before", "after"), pair.files, strict=True):
        if pair.kind == "image":
            _check_size(file, _image_bytes(file, pixels))
            continue
        with open_raster(file.path, date) as raster:
            check_room(result, raw_map(raster.dataset.height, raster.dataset.width))
            _check_size(file, _raster_bytes(raster.dataset))
            check_readable(raster, max_unreadable)


def _check_size(file: File, most: int) -> None:
    if file.size > most:
        raise InputError(
            f"image {file.path} has {decimal(file.size)}, but its header allows at most {decimal(most)}; the file is "
            "probably damaged and was not read"
        )


def file_digest(file: File) -> str:
    """Returns the SHA-256 of a file, up to the size found in the scan. Raises OSError if it is a link or unreadable."""
    total = hashlib.sha256()
    with _opened(file) as handle:
        left = file.size
        while left > 0 and (part := handle.read(min(left, 1 << 20))):
            total.update(part)
            left -= len(part)
    return total.hexdigest()


def check_permitted(pair: FilePair) -> None:
    """Raises OSError if one of the files is a link or may not be read."""
    for file in pair.files:
        _opened(file).close()


def _opened(file: File) -> FileIO:
    return FileIO(open_unlinked(file.path), "rb")


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows has no such call
        return _NAME_BYTES


def _names_used_for(name: str) -> list[str]:
    """Returns the names of an output, of its temporary file, and of a scene's progress folder."""
    suffix = Path(name).suffix
    temporary = f".{name}.{8 * 'x'}{suffix}"
    return [name, f".{name}.progress", f"{temporary}-journal" if suffix == ".gpkg" else temporary]


def _image_bytes(file: File, pixels: PixelFormat) -> int:
    if file.size > _IMAGE_BYTES:  # do not even read the header: Pillow may read chunks of any size before it
        return _IMAGE_BYTES
    height, width = image_size(file.path, pixels)
    return 16 * height * width + (64 << 20)


def _raster_bytes(dataset: Any) -> int:
    value = max(map(bytes_of, dataset.dtypes))
    factor, extra = _RASTER_LIMIT
    return int(factor * dataset.width * dataset.height * dataset.count * value + extra)
