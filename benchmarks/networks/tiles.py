"""Cuts the tiles of the benchmark from a folder of image pairs, as 8-bit RGB and as 16-bit images of 13 bands."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from benchmarks.contest.kept import emptied
from misgnet_runtime.raster.dataset import Tile, TileSet

SIDE = 128  # px
COUNTS = {"train": 256, "val": 48, "test": 96}
BANDS = 13
_DARK, _RANGE, _NOISE = 400, 2000, 20  # of the 16-bit bands


def cut(data: Path, folder: Path) -> str:
    """Writes tiles of ``data``, evenly spread over all of its images, to ``folder/rgb`` and ``folder/bands``.

    A band is a fixed mixture of red, green and blue, with noise. Both have train/, val/ and test/, each with A/, B/ and
    label/.

    Args:
        data: Folder with train/, val/ and test/, each with A/, B/ and label/.
        folder: It is emptied first.

    Returns:
        The digest of the tiles.
    """
    emptied(folder)
    digests = []
    for split, count in COUNTS.items():
        tiles = TileSet.open(data / split, SIDE).spread(count)
        digests.append(tiles.digest())
        for index, tile in enumerate(tiles.tiles()):
            _write(tile, f"tile_{index:03}", folder, split)
    return " ".join(digests)


def _write(tile: Tile, name: str, folder: Path, split: str) -> None:
    for kind, suffix in (("rgb", "png"), ("bands", "tif")):
        for date, image in (("A", tile.before), ("B", tile.after)):
            path = folder / kind / split / date / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "rgb":
                Image.fromarray(image).save(path)
            else:
                _write_bands(bands_of(image), path)
        label = folder / kind / split / "label" / f"{name}.{suffix}"
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * (tile.label > 0)).astype(np.uint8)).save(label)


def bands_of(image: NDArray[np.generic]) -> NDArray[np.uint16]:
    """Returns uint16 (H, W, 13) made of uint8 (H, W, 3); the same image always yields the same bands."""
    mixture = np.random.default_rng(13).dirichlet((1, 1, 1), BANDS)
    noise = np.random.default_rng(list(image.tobytes()[:8])).normal(0, _NOISE, (*image.shape[:2], BANDS))
    return (_DARK + _RANGE * (image / 255) @ mixture.T + noise).clip(0, 65535).astype(np.uint16)


def _write_bands(bands: NDArray[np.uint16], path: Path) -> None:
    height, width, count = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype="uint16") as file:
            file.write(bands.transpose(2, 0, 1))
