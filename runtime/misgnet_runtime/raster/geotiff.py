"""GeoTIFFs, opened with suspicion: never another format under the name, never more memory than is sane."""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from typing import Any

from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.limits import GEOTIFF_BYTES, GEOTIFF_DECODINGS

MOST_BYTES = GEOTIFF_BYTES  # of one block of a file, or of what is read at once
MOST_DECODINGS = GEOTIFF_DECODINGS  # of each block, as strips of tiles are read one after the other
_STRIP_ROWS, _STRIP_COLUMNS, _STRIDE = 256, 2048, 192  # pixels of a strip as they are common, and between two of them
_LEAST_CACHE = 16 << 20
_MOST_BEYOND = 4  # times a raster's own size that its whole blocks may have
_SMALL = 64 << 20  # of a raster that is decoded once, since all of it stays in the cache
GDAL = {
    "GDAL_CACHEMAX": _LEAST_CACHE,  # bytes: rasterio does not take small numbers for megabytes, as GDAL does
    # What lies beside a raster (masks, overviews, statistics) is neither hashed nor checked: it is not read.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
}


def load_rasterio(purpose: str) -> Any:
    """The module rasterio; UnavailableError that says what needs it, and how it is installed."""
    try:
        for part in ("features", "shutil", "transform", "vrt", "warp", "windows"):
            importlib.import_module(f"rasterio.{part}")
        return importlib.import_module("rasterio")
    except ImportError as error:
        raise UnavailableError(
            f"{purpose} needs rasterio; install it with: pip install 'misgnet-export[geo]'"
        ) from error


def open_geotiff(rasterio: Any, path: Path) -> Any:
    """GDAL would open a VRT under any name, and a VRT may read any file of the machine: GeoTIFF only.

    InputError for anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            return rasterio.open(os.fspath(path.resolve()), driver="GTiff")
    except rasterio.errors.RasterioError as error:
        raise InputError(f"raster {path} cannot be opened as a GeoTIFF: {error}") from error


def read_tags(path: Path) -> dict[str, str]:
    """A GeoTIFF's tags; InputError where it is none."""
    rasterio = load_rasterio("a scene")
    with rasterio.Env(**GDAL), open_geotiff(rasterio, path) as dataset:
        return dict(dataset.tags())


def check_memory(dataset: Any, at_once: int, what: str) -> None:
    """InputError where ``at_once`` bytes, or a block of the file, are too many.

    A header of some hundred bytes can declare terabytes.
    """
    block = max(height * width for height, width in dataset.block_shapes) * sum(
        bytes_of(dtype) for dtype in dataset.dtypes
    )
    for name, size in ((what, at_once), ("a block of the file", block)):
        if size > MOST_BYTES:
            raise InputError(
                f"raster {dataset.name} declares {dataset.width} x {dataset.height} px: {name} takes "
                f"{size >> 20:,} MiB, and {MOST_BYTES >> 20} are the most; is the file damaged? If not, write it "
                "in smaller blocks (gdal_translate -co TILED=YES), or cut it into parts"
            )


def cache_for(dataset: Any) -> int:
    """Bytes of GDAL's cache with which blocks are decoded once for each row of tiles.

    Raises:
        InputError: Blocks are so large, in a way that does not suit tiles, that each would be decoded too often.
    """
    height, width = dataset.block_shapes[0]
    pixel = sum(bytes_of(dtype) for dtype in dataset.dtypes)
    down, across = -(-dataset.height // height), -(-dataset.width // width)
    # Blocks are decoded as a whole, however little of them lies within the raster.
    rows = min(down, -(-_STRIP_ROWS // height) + 1) * height
    strip = int(rows * min(across, -(-_STRIP_COLUMNS // width) + 1) * width) * pixel
    times = min(rows, dataset.height) / _STRIDE
    if strip > MOST_BYTES:  # the blocks of a strip are gone when the next one needs them
        times *= max(1, width / _STRIP_COLUMNS)
    whole, decoded = int(dataset.height * dataset.width) * pixel, int(down * height * across * width) * pixel
    if decoded > _MOST_BEYOND * whole + MOST_BYTES:
        raise InputError(
            f"raster {dataset.name} of {dataset.width:,} x {dataset.height:,} px is stored in blocks of {width:,} x "
            f"{height:,} px, which lie mostly beyond it; write it in smaller ones: gdal_translate -co TILED=YES"
        )
    if times > MOST_DECODINGS and whole > _SMALL:
        raise InputError(
            f"raster {dataset.name} is stored in blocks of {width:,} x {height:,} px, each of which would be decoded "
            f"{times:,.0f} times; write it in smaller ones: gdal_translate -co TILED=YES"
        )
    return max(_LEAST_CACHE, 2 * min(strip, MOST_BYTES))  # both dates have their blocks there


def bytes_of(dtype: str) -> int:
    """Of one value, by rasterio's name of its type; 16 for complex ones that NumPy does not know."""
    digits = "".join(c for c in dtype if c.isdigit())
    return int(digits) // 8 if digits else 16


def has_place(transform: Any) -> bool:
    """Whether an affine transform says where pixels lie on the ground."""
    return not transform.is_identity and not transform.is_degenerate


def same_place(first: Any, second: Any, height: int, width: int) -> bool:
    """Whether two transforms put the corners of ``height`` x ``width`` pixels less than half a pixel apart."""
    corners = [(x, y) for x in (0, width) for y in (0, height)]
    moved = [mapped(~first, *mapped(second, *corner)) for corner in corners]
    return all(abs(a - b) < 0.5 for old, new in zip(corners, moved, strict=True) for a, b in zip(old, new, strict=True))


def mapped(matrix: Any, x: float, y: float) -> tuple[float, float]:
    """A point through an affine transform; its operator for that is ``*`` or ``@``, by version."""
    return matrix.a * x + matrix.b * y + matrix.c, matrix.d * x + matrix.e * y + matrix.f
