"""Turns what a caller has for a scene's date (a path, an open rasterio dataset, an xarray DataArray) into a file."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from misgnet_runtime.api.data_arrays import write_data_array
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.raster.geotiff import GDAL, load_rasterio, open_geotiff
from misgnet_runtime.raster.writer import gdal_errors
from misgnet_runtime.storage.files import is_file

# A path or an address, an open rasterio dataset, an xarray DataArray, or a STAC Item of pystac. Types of libraries that
# may be missing cannot be named.
DateSource: TypeAlias = str | os.PathLike[str] | Any
# What a dataset that was opened with other options, or with sidecar files, may have in another form than its file.
_ATTRIBUTES = (
    "width", "height", "count", "dtypes", "crs", "transform", "nodatavals", "scales", "offsets", "colorinterp",
    "mask_flag_enums",
)  # fmt: skip
_COPY = {"driver": "GTiff", "tiled": True, "compress": "deflate", "zlevel": 1, "bigtiff": "IF_SAFER"}


def source_of(given: DateSource, date: str, copies: ExitStack) -> Path | str:
    """Returns the path or address of a date, "before" or "after"; temporary copies last until ``copies`` is closed.

    Raises:
        InputError: The object is of another kind, or cannot be copied.
        UsageError: A dataset is closed, or open for writing.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, os.PathLike):
        return Path(given)
    # A library that was not imported has no objects.
    rasterio, xarray, pystac = (sys.modules.get(name) for name in ("rasterio", "xarray", "pystac"))
    if rasterio is not None and isinstance(given, rasterio.DatasetBase):
        return _of_dataset(load_rasterio("a scene"), given, date, copies)
    if xarray is not None and isinstance(given, xarray.DataArray):
        path = _temporary(copies, date)
        write_data_array(given, path, date)
        return path
    if pystac is not None and isinstance(given, pystac.Item):
        return _of_item(given, date)
    advice = "pass arrays and Pillow images to predict" if isinstance(given, np.ndarray) else "pass one of these"
    raise InputError(
        f"{date} is a {type(given).__module__}.{type(given).__qualname__}; a scene is a path or an address of a "
        f"GeoTIFF or STAC Item, an open rasterio dataset or an xarray DataArray: {advice}"
    )


def _of_item(item: Any, date: str) -> str:
    """Returns the path or address that an item has; it is read again from there, by the rules for STAC Items."""
    if (own := item.get_self_href()) is None:
        raise InputError(f"{date}, STAC Item {item.id}, has no address of its own; save it, and pass its path")
    return str(own)


def _temporary(copies: ExitStack, date: str) -> Path:
    return Path(copies.enter_context(tempfile.TemporaryDirectory(prefix="misgnet-")), f"{date}.tif")


def _of_dataset(rasterio: Any, dataset: Any, date: str, copies: ExitStack) -> Path:
    """Returns the file of a dataset if that has the same pixels, else a copy."""
    if dataset.closed or dataset.mode != "r":
        how = "closed" if dataset.closed else f"open in mode '{dataset.mode}'"
        raise UsageError(f"{date}, dataset {dataset.name}, is {how}; open it with rasterio.open(path)")
    path = Path(dataset.name)
    if type(dataset) is rasterio.io.DatasetReader and dataset.driver == "GTiff" and is_file(path):
        with rasterio.Env(**GDAL), open_geotiff(rasterio, path) as file:
            if all(repr(getattr(dataset, name)) == repr(getattr(file, name)) for name in _ATTRIBUTES):  # NaN != NaN
                return path
    copy = _temporary(copies, date)
    with gdal_errors(rasterio, copy):
        rasterio.shutil.copy(dataset, copy, **_COPY)
    return copy
