"""What is asked of a pair before its files are read whole: names, sizes and headers, in milliseconds at any size."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from rich.filesize import decimal

from misgnet_runtime.errors import InputError
from misgnet_runtime.images import image_size
from misgnet_runtime.watch.pairing import File, FilePair, Kind

_NAME_BYTES = 255  # of a file's name, where the system gives no number
_IMAGE_BYTES = 2 << 30  # of a PNG or JPEG file: what Pillow opens has 16-bit RGBA pixels for 1.4 GiB at most
_ROOM = 4, 1 << 30  # a raster's file takes so many times its pixels, and so many bytes, at most
_MAP_BYTES = 4  # of a pixel of the map that is made beside the output


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


def check_files(pair: FilePair, output: Path) -> None:
    """InputError where a file's header cannot be read, or the file or its map is larger than that header explains."""
    for file in pair.files:
        most = _most_bytes(file.path, pair.kind, output)
        if file.size > most:
            raise InputError(
                f"image {file.path} has {decimal(file.size)}, and by its header at most {decimal(most)}; is it "
                "damaged? It is not read"
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


def check_readable(pair: FilePair) -> None:
    """OSError where one of the files may not be read, or is a link."""
    for file in pair.files:
        _opened(file).close()


def _opened(file: File) -> FileIO:
    return FileIO(os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        return _NAME_BYTES


def _names_on_the_way(name: str) -> list[str]:
    """The names of an output, of its temporary file, and of the folder of a scene's progress."""
    suffix = Path(name).suffix
    temporary = f".{name}.{8 * 'x'}{suffix}"
    return [name, f".{name}.progress", f"{temporary}-journal" if suffix == ".gpkg" else temporary]


def _most_bytes(path: Path, kind: Kind, output: Path) -> int:
    if kind == "image":
        return _image_bytes(path)
    from misgnet_runtime.scenes.geotiff import GDAL, load_rasterio, open_geotiff

    rasterio = load_rasterio("a scene")
    with rasterio.Env(**GDAL), open_geotiff(rasterio, path) as dataset:
        pixels = dataset.width * dataset.height
        _check_map(path, pixels, output)
        value = max(map(_bytes_of, dataset.dtypes))
        return int(_ROOM[0] * pixels * dataset.count * value + _ROOM[1])


def _image_bytes(path: Path) -> int:
    if path.lstat().st_size > _IMAGE_BYTES:  # not even the header: Pillow may read chunks of any size before it
        return _IMAGE_BYTES
    height, width = image_size(path)
    return 16 * height * width + (64 << 20)


def _check_map(path: Path, pixels: int, output: Path) -> None:
    needed, total = _MAP_BYTES * pixels, shutil.disk_usage(output).total
    if needed > total:
        raise InputError(
            f"raster {path} has {pixels:,} px by its header: its map takes {decimal(needed)}, and the disk of {output} "
            f"has {decimal(total)}; is it damaged? If not, cut the scene"
        )


def _bytes_of(dtype: str) -> int:
    digits = "".join(letter for letter in dtype if letter.isdigit())
    return max(1, int(digits) // 8) if digits else 16
