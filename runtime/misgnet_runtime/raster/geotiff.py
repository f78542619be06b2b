"""Opens untrusted GeoTIFFs: rejects other formats, and files whose headers would demand too much memory."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.limits import GEOTIFF_BYTES, GEOTIFF_DECODINGS

MOST_BYTES = GEOTIFF_BYTES  # of one block of a file, and of one read
MOST_DECODINGS = GEOTIFF_DECODINGS  # of each block, when rows of tiles are read in order
_IMAGES = MappingProxyType({"PNG": b"\x89PNG", "JPEG": b"\xff\xd8\xff"})
_STRIP_ROWS, _STRIP_COLUMNS, _STRIDE = 256, 2048, 192  # pixels of a typical row of tiles, and between two rows
_LEAST_CACHE = 16 << 20
_MOST_ROWS = 128 << 20  # bytes of both dates' rows of blocks that stay in the cache for the next row of tiles
_MOST_BEYOND = 4  # limit of the size of all whole blocks, in multiples of the raster's size
_SMALL = 64 << 20  # bytes of a raster that is decoded only once, since all of it stays in the cache
GDAL = {
    "GDAL_CACHEMAX": _LEAST_CACHE,  # bytes: unlike GDAL, rasterio does not interpret small numbers as megabytes
    # Sidecar files (masks, overviews, statistics) are not read: they are neither hashed nor checked.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
}


def load_rasterio(purpose: str) -> Any:
    """Imports rasterio with the parts that are used; raises as :func:`load_library`."""
    return load_library("rasterio", purpose, ("features", "shutil", "transform", "vrt", "warp", "windows"))


def load_library(name: str, purpose: str, parts: Sequence[str] = ()) -> Any:
    """Imports a library of the extra ``[geo]`` and some of its ``parts``.

    Raises:
        UnavailableError: It is missing; the message states ``purpose`` and the install command.
    """
    try:
        for part in parts:
            importlib.import_module(f"{name}.{part}")
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{purpose} requires {name}: pip install 'misgnet-export[geo]'") from error


def open_geotiff(rasterio: Any, path: Path) -> Any:
    """Opens a GeoTIFF; raises InputError for anything else.

    Other drivers are disabled: GDAL opens a VRT under any file name, and a VRT can read any file of the machine.
    """
    try:
        return _without_warning(rasterio, path.resolve(), driver="GTiff")
    except rasterio.errors.RasterioError as error:
        raise InputError(f"raster {path} cannot be opened as a GeoTIFF: {_image_kind(path) or error}") from error


def _image_kind(path: Path) -> str:
    """Returns what the file is if it is a plain image, which ``predict`` compares with another image."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return ""
    kind = next((name for name, first in _IMAGES.items() if start.startswith(first)), None)
    return f"it is a {kind} image; give a GeoTIFF, or two images and -o X.png to `misgnet-run predict`" if kind else ""


def create_geotiff(rasterio: Any, path: Path, **profile: Any) -> Any:
    """Opens a new GeoTIFF for writing; rasterio's errors are not converted."""
    return _without_warning(rasterio, path, "w", driver="GTiff", **profile)


def _without_warning(rasterio: Any, path: Path, *mode: str, **options: Any) -> Any:
    """Opens a raster; a missing georeferencing is no problem that Python should print a warning about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(os.fspath(path), *mode, **options)


def read_tags(path: Path) -> dict[str, str]:
    """Reads a GeoTIFF's tags; raises InputError if the file is not a GeoTIFF."""
    rasterio = load_rasterio("a scene")
    with rasterio.Env(**GDAL), open_geotiff(rasterio, path) as dataset:
        return dict(dataset.tags())


def check_memory(dataset: Any, at_once: int, what: str) -> None:
    """Raises InputError if ``at_once`` bytes (named ``what`` in the message) or a block of the file are too large.

    A header of a few hundred bytes can declare terabytes.
    """
    block = max(height * width for height, width in dataset.block_shapes) * sum(
        bytes_of(dtype) for dtype in dataset.dtypes
    )
    for name, size in ((what, at_once), ("a block of the file", block)):
        if size > MOST_BYTES:
            raise InputError(
                f"raster {dataset.name} declares {dataset.width} x {dataset.height} px: {name} takes "
                f"{size >> 20:,} MiB, and the limit is {MOST_BYTES >> 20} MiB; check whether the file is damaged. If "
                "not, write it in smaller blocks (gdal_translate -co TILED=YES), or cut it into parts"
            )


def cache_for(dataset: Any) -> int:
    """Returns the size in bytes of GDAL's cache with which each block is decoded once per row of tiles.

    If that takes less than 128 MiB, the cache holds the rows of blocks that two rows of tiles share, so that each block
    is decoded only once.

    Raises:
        InputError: Blocks are so large that each would be decoded too often, or are mostly outside of the raster.
    """
    height, width = dataset.block_shapes[0]
    pixel = sum(bytes_of(dtype) for dtype in dataset.dtypes)
    down, across = -(-dataset.height // height), -(-dataset.width // width)
    # Blocks are decoded whole, also if only a small part lies within the raster.
    rows = min(down, -(-_STRIP_ROWS // height) + 1) * height
    strip = int(rows * min(across, -(-_STRIP_COLUMNS // width) + 1) * width) * pixel
    times = min(rows, dataset.height) / _STRIDE
    if strip > MOST_BYTES:  # the blocks of a row of tiles have left the cache when the next row needs them
        times *= max(1, width / _STRIP_COLUMNS)
    whole, decoded = int(dataset.height * dataset.width) * pixel, int(down * height * across * width) * pixel
    if decoded > _MOST_BEYOND * whole + MOST_BYTES:
        raise InputError(
            f"raster {dataset.name} of {dataset.width:,} x {dataset.height:,} px is stored in blocks of {width:,} x "
            f"{height:,} px, which are mostly outside of it; write it in smaller blocks: gdal_translate -co TILED=YES"
        )
    if times > MOST_DECODINGS and whole > _SMALL:
        raise InputError(
            f"raster {dataset.name} is stored in blocks of {width:,} x {height:,} px, each of which would be decoded "
            f"{times:,.0f} times; write it in smaller blocks: gdal_translate -co TILED=YES"
        )
    shared = int(rows * across * width) * pixel * 17 // 16  # GDAL's own records of a block count as well
    kept = shared if 2 * shared <= _MOST_ROWS else min(strip, MOST_BYTES)
    return max(_LEAST_CACHE, 2 * kept)  # both dates share the cache


def bytes_of(dtype: str) -> int:
    """Returns the bytes of one value, by rasterio's name of its type; 16 for complex types unknown to NumPy."""
    digits = "".join(c for c in dtype if c.isdigit())
    return int(digits) // 8 if digits else 16


def is_georeferencing(transform: Any) -> bool:
    """Returns whether an affine transform maps pixels to map coordinates: neither identity nor degenerate."""
    return not transform.is_identity and not transform.is_degenerate


def same_position(first: Any, second: Any, height: int, width: int) -> bool:
    """Returns whether two transforms put the corners of ``height`` x ``width`` pixels less than half a pixel apart."""
    corners = [(x, y) for x in (0, width) for y in (0, height)]
    moved = [mapped(~first, *mapped(second, *corner)) for corner in corners]
    return all(abs(a - b) < 0.5 for old, new in zip(corners, moved, strict=True) for a, b in zip(old, new, strict=True))


def mapped(matrix: Any, x: float, y: float) -> tuple[float, float]:
    """Maps a point by an affine transform, whose own operator is ``*`` or ``@`` depending on its version."""
    return matrix.a * x + matrix.b * y + matrix.c, matrix.d * x + matrix.e * y + matrix.f
