"""What is asked of a pair before its files are read whole: names, sizes and headers, in milliseconds at any size.

A run opens rasters anew: a file that is refused here is neither hashed nor run.
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
from misgnet_runtime.raster.geotiff import bytes_of
from misgnet_runtime.raster.images import image_size
from misgnet_runtime.raster.reader import open_raster
from misgnet_runtime.storage.files import open_unlinked

_NAME_BYTES = 255  # of a file's name, where the system gives no number
_IMAGE_BYTES = 2 << 30  # of a PNG or JPEG file: what Pillow opens has 16-bit RGBA pixels for 1.4 GiB at most
_ROOM = 4, 1 << 30  # a raster's file takes so many times its pixels, and so many bytes more


def check_names(output: Path, outputs: Iterable[str]) -> None:
    """InputError where ``output`` cannot hold a file that an output's name is made into."""
    most = _longest_name(output)
    for name in outputs:
        longest = max(_names_on_the_way(name), key=lambda found: len(os.fsencode(found)))
        if (size := len(os.fsencode(longest))) > most:
            raise InputError(
                f"the name of its output {name[:40]}... is too long: on the way it takes {size} bytes, and {most} are "
                "the most here; rename the pair"
            )


def check_files(pair: FilePair, result: Path, max_unreadable: float) -> None:
    """InputError where a file's header cannot be read, or the file is larger than that header explains.

    For rasters also where the disk of ``result``, the map, cannot hold it (StorageError where it may later), and
    UnreadableError where more than ``max_unreadable`` percent are known not to be in the file.
    """
    for date, file in zip(("before", "after"), pair.files, strict=True):
        if pair.kind == "image":
            _check_size(file, _image_bytes(file))
            continue
        with open_raster(file.path, date) as raster:
            check_room(result, raw_map(raster.dataset.height, raster.dataset.width))
            _check_size(file, _raster_bytes(raster.dataset))
            check_readable(raster, max_unreadable)


def _check_size(file: File, most: int) -> None:
    if file.size > most:
        raise InputError(
            f"image {file.path} has {decimal(file.size)}, and by its header at most {decimal(most)}; is it damaged? It "
            "is not read"
        )


def file_digest(file: File) -> str:
    """SHA-256 of a file that is as it was found. Raises OSError where it is a link or not readable."""
    total = hashlib.sha256()
    with _opened(file) as handle:
        left = file.size
        while left > 0 and (part := handle.read(min(left, 1 << 20))):
            total.update(part)
            left -= len(part)
    return total.hexdigest()


def check_permitted(pair: FilePair) -> None:
    """OSError where one of the files may not be read, or is a link."""
    for file in pair.files:
        _opened(file).close()


def _opened(file: File) -> FileIO:
    return FileIO(open_unlinked(file.path), "rb")


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows has no such call
        return _NAME_BYTES


def _names_on_the_way(name: str) -> list[str]:
    """The names of an output, of its temporary file, and of the folder of a scene's progress."""
    suffix = Path(name).suffix
    temporary = f".{name}.{8 * 'x'}{suffix}"
    return [name, f".{name}.progress", f"{temporary}-journal" if suffix == ".gpkg" else temporary]


def _image_bytes(file: File) -> int:
    if file.size > _IMAGE_BYTES:  # not even the header: Pillow may read chunks of any size before it
        return _IMAGE_BYTES
    height, width = image_size(file.path)
    return 16 * height * width + (64 << 20)


def _raster_bytes(dataset: Any) -> int:
    value = max(map(bytes_of, dataset.dtypes))
    return int(_ROOM[0] * dataset.width * dataset.height * dataset.count * value + _ROOM[1])
