"""Draws demo_scene/ and builds demo_bundle/ as demo_bundle.toml says: `python3 dev.py examples`.

Everything is generated from seeds. The bundle takes a few minutes; `--scene` draws only the scene.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from misgnet.synthetic import make_pair

FOLDER = Path(__file__).resolve().parent
SEED, SIZE = 11, 768  # of the scene; the demo weights were trained on seeds from 2**32 on
TILE = 224  # px: golden tiles of 256 px would make the bundle larger than 15 MB
# JPEG, as aerial images are often delivered; 0.5 m per pixel, as the demo weights were trained on.
PROFILE = {
    "driver": "GTiff", "width": SIZE, "height": SIZE, "count": 3, "dtype": "uint8", "crs": "EPSG:32632",
    "transform": from_origin(691_000, 5_335_000, 0.5, 0.5), "tiled": True, "blockxsize": 256, "blockysize": 256,
    "compress": "jpeg", "jpeg_quality": 85, "photometric": "ycbcr",
}  # fmt: skip


def draw_scene(folder: Path) -> NDArray[np.bool_]:
    """Writes before.tif and after.tif; returns the label (SIZE, SIZE): true for roofs that exist at only one date."""
    pair = make_pair(SEED, SIZE)
    folder.mkdir(exist_ok=True)
    for name, image in (("before", pair.before), ("after", pair.after)):
        with rasterio.open(folder / f"{name}.tif", "w", **PROFILE) as raster:
            raster.write(image.transpose(2, 0, 1))
    return pair.label


def build_bundle(folder: Path) -> None:
    """Draws the tiles that the bundle is calibrated and evaluated on, and builds it.

    Args:
        folder: Folder of demo_bundle.toml and of the weights. The commands run in it, so that the manifest states
            relative paths.
    """
    commands = (
        ("misgnet", "synthesize", "-o", "demo_tiles", "--seed", "1", "--size", str(TILE), "--force"),
        ("misgnet-export", "build", "--config", "demo_bundle.toml", "--force"),
    )
    for command, *arguments in commands:
        print("$", command, *arguments, flush=True)
        subprocess.run([Path(sys.executable).with_name(command), *arguments], cwd=folder, check=True)


if __name__ == "__main__":
    draw_scene(FOLDER / "demo_scene")
    if "--scene" not in sys.argv[1:]:
        build_bundle(FOLDER)
