"""A scene's change as a PNG mask, and what is lost by that."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from misgnet_runtime.errors import InputError
from misgnet_runtime.log import EventLog
from misgnet_runtime.raster.geotiff import GDAL, load_rasterio
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.images import write_mask
from misgnet_runtime.storage.atomic import resumable_errors

MOST_PNG_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # what Pillow opens again; such a mask is held in memory
_CHANGED = 1


def is_mask(output: Path) -> bool:
    """Whether an output is a PNG mask, by its name."""
    return output.suffix.lower() == ".png"


def check_mask(grid: Grid, output: Path, log: EventLog) -> None:
    """Log that a PNG keeps no georeferencing.

    Raises:
        InputError: The scene has too many pixels for a PNG.
    """
    if grid.height * grid.width > MOST_PNG_PIXELS:
        raise InputError(
            f"the scene has {grid.width:,} x {grid.height:,} px, and a PNG mask is written up to {MOST_PNG_PIXELS:,} "
            f"pixels; choose -o {output.stem}.tif"
        )
    if grid.measured or grid.crs:
        log.info(f"{output.name} keeps no georeferencing (it is {grid}); -o {output.stem}.tif does")


def warn_of_nodata(output: Path, share: float, log: EventLog) -> None:
    """Log what share of a PNG mask, 0 to 1, stands for no data."""
    if share:
        log.warning(
            f"{100 * share:.2f} % of the pixels are nodata, and 0 in {output.name} as unchanged ones are; "
            f"-o {output.stem}.tif keeps them apart"
        )


def write_png(change: Path, path: Path) -> None:
    """Write a change raster as a mask: 255 where it is 1 (changed), else 0; StorageError where the disk refuses."""
    rasterio = load_rasterio("a scene")
    with rasterio.Env(**GDAL), rasterio.open(change, driver="GTiff") as dataset:
        changed = dataset.read(1) == _CHANGED
    with resumable_errors(path):
        write_mask(path, changed)
