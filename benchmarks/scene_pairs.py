"""Makes large GeoTIFFs from folders of images, and the label that belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Mask
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.images import image_size, read_image, read_label

METRES_PER_PIXEL = 0.5
BLOCK = 512


def make_scene(path: Path, folder: Path, side: int) -> Path:
    """Writes a GeoTIFF of ``side`` x ``side`` px from the images of ``folder``; only one image is in memory at a time.

    Raises:
        InputError: There are no images, or they have different sizes.
    """
    import rasterio
    from rasterio.transform import from_origin

    profile = {
        "driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "crs": "EPSG:32633",
        "transform": from_origin(400_000, 5_000_000, METRES_PER_PIXEL, METRES_PER_PIXEL), "photometric": "RGB",
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "interleave": "pixel",
    }  # fmt: skip
    images = images_of(folder)
    with rasterio.open(path, "w", **profile) as scene:
        for pixels, top, left in _placed(images, side, read_image):
            window = rasterio.windows.Window(left, top, pixels.shape[1], pixels.shape[0])
            scene.write(pixels.transpose(2, 0, 1), window=window)
    return path


def make_label(folder: Path, side: int) -> Mask:
    """Returns the label, bool (side, side), of a pair of scenes that :func:`make_scene` wrote; errors as there."""
    label = np.zeros((side, side), np.bool_)
    for pixels, top, left in _placed(images_of(folder), side, read_label):
        label[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return label


def images_of(folder: Path) -> list[Path]:
    """Returns the PNG images of a folder by name; raises InputError unless there are some, all of the same size."""
    images = sorted(folder.glob("*.png"))
    sizes = {image_size(image) for image in images}
    if len(sizes) != 1:
        found = f"{plural(len(images), 'PNG image')} of {plural(len(sizes), 'size')}"
        raise InputError(f"{folder} has {found}; expected at least one image, all of the same size")
    return images


def _placed(
    images: Sequence[Path], side: int, read: Callable[[Path], NDArray[np.generic]]
) -> Iterator[tuple[NDArray[np.generic], int, int]]:
    """Yields the pixels of the images, repeated to fill a square, with the top and the left of each."""
    places = cells(side, *image_size(images[0]))
    for image, (top, left, height, width) in zip(cycle(images), places, strict=False):
        yield read(image)[:height, :width], top, left


def cells(side: int, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields top, left, height and width of the images in a square, row by row; those at the edges are cropped."""
    for top in range(0, side, height):
        for left in range(0, side, width):
            yield top, left, min(height, side - top), min(width, side - left)
