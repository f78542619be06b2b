"""Reads small TIFFs whole, as images: by the same rules as scenes, but without nodata and conversions."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from misgnet_runtime.callables import Image
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.pixels import RGB8, PixelFormat
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.geotiff import GDAL, check_memory, load_rasterio, open_geotiff
from misgnet_runtime.raster.grid import Grid, difference
from misgnet_runtime.raster.reader import Raster, open_raster
from misgnet_runtime.raster.statistics import find_scaling
from misgnet_runtime.raster.tiling import Span


def read_date(path: Path, pixels: PixelFormat = RGB8) -> Image:
    """Reads the pixels of a raster, (H, W, C); raises InputError as :func:`read_dates`."""
    with open_raster(path, "before", pixels=pixels) as raster:
        return _read(raster)


def read_dates(before: Path, after: Path, pixels: PixelFormat = RGB8) -> tuple[Image, Image]:
    """Reads both dates, (H, W, C), which must have the same grid.

    Raises:
        InputError: A raster has another format than ``pixels``, has nodata or unreadable pixels, or the grids differ.
        UnavailableError: rasterio is not installed.
    """
    with ExitStack() as stack:
        first = stack.enter_context(open_raster(before, "before", pixels=pixels))
        second = stack.enter_context(open_raster(after, "after", Grid.of(first.dataset), pixels=pixels))
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


def _check_format(raster: Raster) -> None:
    """Raises InputError if a raster needs a conversion that only options of scenes can declare."""
    pixels, dtype = raster.pixels, raster.dataset.dtypes[0]
    if dtype != pixels.samples:
        kind = {"uint8": "Byte", "uint16": "UInt16"}[pixels.samples]
        raise InputError(
            f"raster {raster.name} contains {dtype}; this command reads {pixels} as they are: convert the values "
            f"first, for example with gdal_translate -ot {kind} -scale LOW HIGH 0 {pixels.largest}"
        )
    if pixels.bands != 3 and (found := raster.dataset.count - (raster.alpha is not None)) != pixels.bands:
        raise InputError(
            f"raster {raster.name} has {plural(found, 'band')}{' and an alpha band' * (raster.alpha is not None)}; "
            f"this command reads {pixels}: write these to their own file, for example with gdal_translate -b 1 -b 2 ..."
        )


def _read(raster: Raster) -> Image:
    height, width = int(raster.dataset.height), int(raster.dataset.width)
    _check_format(raster)
    check_memory(raster.dataset, height * width * 4 * raster.pixels.bytes, "the whole image")
    image, valid, unreadable = raster.image(find_scaling(raster, Declared()), Span(0, height), Span(0, width))
    if unreadable:
        blocks = plural(len(unreadable), "block")
        raise InputError(f"raster {raster.name} is damaged or truncated: {blocks} cannot be read; fetch it again")
    if not valid.all():
        raise InputError(
            f"raster {raster.name} has {100 - 100 * valid.mean():.2f} % nodata; this command needs {raster.pixels} "
            "without nodata"
        )
    return image
