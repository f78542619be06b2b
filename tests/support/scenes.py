"""Writes and reads small scenes as GeoTIFFs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from misgnet_runtime.pixels import PixelFormat

# Georeferencing; the origin is a corner of the global grid of 64 px tiles.
PLACE = {"crs": "EPSG:32633", "transform": from_origin(399_984, 4_999_992, 0.5, 0.5)}


def write_raster(path: Path, pixels: NDArray[Any], *, mask: NDArray[Any] | None = None, **options: object) -> Path:
    """Writes (B, H, W) as a GeoTIFF; ``options`` replace the profile, including ``PLACE``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype}
    colours = options.pop("colours", None)
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **{**profile, **PLACE, **tiles, **options}) as dataset,
    ):
        if colours:
            dataset.colorinterp = colours
        dataset.write(pixels)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def scene(height: int, width: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns two dates, uint8 (3, H, W), that differ by noise and two bright rectangles."""
    random = np.random.default_rng(seed)
    before = random.integers(40, 90, (3, height, width)).astype(np.uint8)
    after = before + random.integers(0, 9, before.shape).astype(np.uint8)
    after[:, height // 5 : height // 2, width // 6 : width // 2] += 150
    after[:, -height // 4 :, -width // 5 :] += 150
    return before, after


def random_bands(pixels: PixelFormat, height: int, width: int, seed: int = 0) -> NDArray[Any]:
    """Returns a date of random values, (C, H, W), of a pixel format."""
    shape = (pixels.bands, height, width)
    return np.random.default_rng(seed).integers(1, pixels.largest, shape, pixels.samples)


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path, driver="GTiff") as dataset:
        return np.asarray(dataset.read(1))
