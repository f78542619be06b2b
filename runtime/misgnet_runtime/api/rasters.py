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
from misgnet_runtime.raster.source import RasterFile
from misgnet_runtime.raster.writer import gdal_errors
from misgnet_runtime.storage.files import is_file

# A path, an open rasterio dataset or an xarray DataArray; the last two have no types without their libraries.
DateSource: TypeAlias = str | os.PathLike[str] | Any
# What a dataset that was opened with other options, or with sidecar files, may have in another form than its file.
_ATTRIBUTES = (
    "width", "height", "count", "dtypes", "crs", "transform", "nodatavals", "scales", "offsets", "colorinterp",
    "mask_flag_enums",
)  # fmt: skip
_COPY = {"driver": "GTiff", "tiled": True, "compress": "deflate", "zlevel": 1, "bigtiff": "IF_SAFER"}


def source_of(given: DateSource, date: str, copies: ExitStack) -> RasterFile | Path:
    """Returns the raster of a date, "before" or "after"; temporary copies are removed when ``copies`` is closed.

    Raises:
        InputError: The object is of another kind, or cannot be copied.
        UsageError: A dataset is closed, or open for writing.
    """
    if isinstance(given, (str, os.PathLike)):
        return Path(given)
    if isinstance(given, RasterFile):
        return given
    rasterio, xarray = sys.modules.get("rasterio"), sys.modules.get("xarray")  # objects of others do not exist
    if rasterio is not None and isinstance(given, rasterio.DatasetBase):
        return _of_dataset(load_rasterio("a scene"), given, date, copies)
    if xarray is not None and isinstance(given, xarray.DataArray):
        path = _temporary(copies, date)
        write_data_array(given, path, date)
        return path
    advice = "pass arrays and Pillow images to predict" if isinstance(given, np.ndarray) else "pass one of these"
    raise InputError(
        f"{date} is a {type(given).__module__}.{type(given).__qualname__}; a scene is a path of a GeoTIFF, an open "
        f"rasterio dataset or an xarray DataArray: {advice}"
    )


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
