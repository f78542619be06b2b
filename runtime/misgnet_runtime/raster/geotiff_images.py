"""Reads small GeoTIFFs whole, as images: by the same rules as scenes, but without nodata."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from misgnet_runtime.callables import RgbImage
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.geotiff import GDAL, check_memory, load_rasterio, open_geotiff
from misgnet_runtime.raster.grid import Grid, difference
from misgnet_runtime.raster.reader import Raster, open_raster
from misgnet_runtime.raster.statistics import find_scaling
from misgnet_runtime.raster.tiling import Span


def read_date(path: Path) -> RgbImage:
    """Reads the RGB pixels of a raster, uint8 (H, W, 3); raises InputError as :func:`read_dates`."""
    with open_raster(path, "before") as raster:
        return _read(raster)


def read_dates(before: Path, after: Path) -> tuple[RgbImage, RgbImage]:
    """Reads both dates, uint8 (H, W, 3), which must have the same grid.

    Raises:
        InputError: A raster is not 8-bit RGB, has nodata or unreadable pixels, or the grids differ.
        UnavailableError: rasterio is not installed.
    """
    with ExitStack() as stack:
        first = stack.enter_context(open_raster(before, "before"))
        second = stack.enter_context(open_raster(after, "after", Grid.of(first.dataset)))
        return _read(first), _read(second)


def check_label(date: Path, label: Path) -> None:
    """Raises InputError if a date and its label are both georeferenced and have different grids."""
    rasterio = load_rasterio("a GeoTIFF")
    with (
        rasterio.Env(**GDAL),
        open_geotiff(rasterio, date) as image,
        open_geotiff(rasterio, label) as mask,
    ):
        first, second = Grid.of(image), Grid.of(mask)
        if first.has_transform and second.has_transform and (problem := difference(first, second)):
            raise InputError(f"label {label} and {date} {problem}: the date is {first}, the label is {second}")


def size_of(path: Path) -> tuple[int, int]:
    """Returns height and width of a raster in pixels, from its header; raises as :func:`open_raster`."""
    with open_raster(path, "before") as raster:
        return int(raster.dataset.height), int(raster.dataset.width)


def _read(raster: Raster) -> RgbImage:
    height, width = int(raster.dataset.height), int(raster.dataset.width)
    check_memory(raster.dataset, height * width * 12, "the whole image")
    image, valid, unreadable = raster.rgb(find_scaling(raster, Declared()), Span(0, height), Span(0, width))
    if unreadable:
        blocks = plural(len(unreadable), "block")
        raise InputError(f"raster {raster.name} is damaged or truncated: {blocks} cannot be read; fetch it again")
    if not valid.all():
        raise InputError(
            f"raster {raster.name} has {100 - 100 * valid.mean():.2f} % nodata; this command needs 8-bit RGB without "
            "nodata"
        )
    return image
