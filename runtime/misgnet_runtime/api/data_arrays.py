"""Writes xarray DataArrays as GeoTIFFs, in parts, with what they state about their pixels; nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.geotiff import GDAL, create_geotiff, load_rasterio
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.raster.writer import gdal_errors

_AXES = (("y", "x"), ("latitude", "longitude"), ("lat", "lon"))  # names of the dimensions of rows and columns
_NODATA = ("_FillValue", "missing_value", "nodata")  # attributes that state it, as rioxarray and CF files do
_MOST_DEVIATION = 0.1  # of a coordinate from the regular grid, in pixels
_BLOCK = 256  # side of a block in pixels
_AT_ONCE = 64 << 20  # bytes of values that are computed and written at once
_COLOURS = ("red", "green", "blue", "alpha")  # names of bands that are the file's colour interpretation


def write_data_array(array: Any, path: Path, date: str) -> None:
    """Writes a DataArray of the dimensions (band, y, x), in any order, or (y, x); other dimensions must have length 1.

    Raises:
        InputError: It has no CRS, other dimensions, irregular coordinates, or values that a GeoTIFF cannot hold.
    """
    rasterio = load_rasterio("a scene")
    rows, columns = _axes(array, date)
    crs = _crs(rasterio, array, date)
    array = _squeezed(array, (rows, columns), date)
    (top, down), (left, across) = _axis(array, rows, date), _axis(array, columns, date)
    bands, height, width = array.shape
    scales, offsets = _numbers(array, "scale_factor", "scales", 1.0), _numbers(array, "add_offset", "offsets", 0.0)
    profile = {
        "count": bands, "height": height, "width": width, "dtype": array.dtype.name, "crs": crs,
        "transform": rasterio.Affine(across, 0, left, 0, down, top), "nodata": _nodata(array), "tiled": True,
        "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "zlevel": 1, "bigtiff": "IF_SAFER",
        "photometric": "MINISBLACK", "alpha": "NO",  # else GDAL calls the bands of 8-bit files red, green, blue, alpha
    }  # fmt: skip
    deep = max(1, _AT_ONCE // (_BLOCK * width * bands * array.dtype.itemsize)) * _BLOCK
    try:
        with gdal_errors(rasterio, path), rasterio.Env(**GDAL), create_geotiff(rasterio, path, **profile) as file:
            if colours := _colours(rasterio, array):
                file.colorinterp = colours
            file.scales, file.offsets = scales, offsets
            for span in Span(0, height).split(deep):
                values = np.ascontiguousarray(array[:, span.start : span.stop].values)
                file.write(values, window=((span.start, span.stop), (0, width)))
    except (TypeError, ValueError) as error:
        raise InputError(f"{date}, {_named(array)}, cannot be written as a GeoTIFF: {error}") from error


def _named(array: Any) -> str:
    return f"DataArray '{array.name}'" if array.name is not None else "a DataArray"


def _axes(array: Any, date: str) -> tuple[str, str]:
    for names in _AXES:
        if set(names) <= set(array.dims):
            return names
    raise InputError(
        f"{date}, {_named(array)}, has the dimensions {', '.join(map(str, array.dims))}; expected y and x, latitude "
        "and longitude, or lat and lon: rename them"
    )


def _squeezed(array: Any, axes: tuple[str, str], date: str) -> Any:
    """Returns the array with the dimensions (band, y, x)."""
    others = [name for name in array.dims if name not in axes]
    long = [name for name in others if array.sizes[name] != 1]
    if len(long) > 1:
        sizes = ", ".join(f"{name} of {array.sizes[name]}" for name in long)
        raise InputError(f"{date}, {_named(array)}, has {sizes} besides its rows and columns; select one date")
    band = long[0] if long else "band" if "band" in others else others[0] if others else None
    array = array.squeeze([name for name in others if name != band], drop=True)
    return (array.expand_dims("band") if band is None else array).transpose(band or "band", *axes)


def _axis(array: Any, name: str, date: str) -> tuple[float, float]:
    """Returns the edge of the first pixel and the step from pixel to pixel."""
    if name not in array.coords or array.sizes[name] < 2:
        what = "no coordinates" if name not in array.coords else f"{array.sizes[name]} pixel"
        raise InputError(
            f"{date}, {_named(array)}, has {what} along {name}; expected regular coordinates of at least 2 "
            "pixel centres"
        )
    centres = np.asarray(array.coords[name].values, np.float64)
    step = (centres[-1] - centres[0]) / (len(centres) - 1)
    deviation = np.abs(centres - (centres[0] + step * np.arange(len(centres)))).max()
    if not (np.isfinite(step) and step and deviation <= _MOST_DEVIATION * abs(step)):
        raise InputError(
            f"{date}, {_named(array)}, has irregular coordinates along {name}; resample it to a regular grid, for "
            "example with rio.reproject"
        )
    return float(centres[0] - step / 2), float(step)


def _crs(rasterio: Any, array: Any, date: str) -> Any:
    """Returns the coordinate system that the array's grid mapping or attributes state, as rioxarray writes it."""
    name = array.encoding.get("grid_mapping", array.attrs.get("grid_mapping", "spatial_ref"))
    mapping = array.coords[name].attrs if name in array.coords else {}
    found = mapping.get("crs_wkt") or mapping.get("spatial_ref") or array.attrs.get("crs")
    if not found:
        raise InputError(
            f"{date}, {_named(array)}, states no coordinate system; set it with rioxarray: "
            "array.rio.write_crs('EPSG:...')"
        )
    try:
        with rasterio.Env(**GDAL):
            return rasterio.crs.CRS.from_user_input(found)
    except rasterio.errors.CRSError as error:
        raise InputError(f"{date}, {_named(array)}, states a coordinate system that is unknown: {error}") from error


def _nodata(array: Any) -> float | None:
    return next((float(array.attrs[name]) for name in _NODATA if array.attrs.get(name) is not None), None)


def _numbers(array: Any, name: str, plural: str, default: float) -> tuple[float, ...]:
    """Returns a number for each band, from the attribute for all of them or from that of rioxarray for each."""
    found = array.attrs.get(plural)
    return tuple(map(float, found)) if found is not None else (float(array.attrs.get(name, default)),) * array.shape[0]


def _colours(rasterio: Any, array: Any) -> list[Any] | None:
    """Returns the bands' colours if the coordinate of the bands names any of red, green, blue and alpha."""
    band = array.dims[0]
    names = [str(name).lower() for name in array.coords[band].values] if band in array.coords else []
    if not set(names) & set(_COLOURS):
        return None
    kinds = rasterio.enums.ColorInterp
    return [kinds[name] if name in _COLOURS else kinds.undefined for name in names]
