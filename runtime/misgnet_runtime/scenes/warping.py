"""Rasters warped onto another grid as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.scenes.grids import Grid

# GDAL warps all bands of a file at once five times as fast as some of them, but in time that grows with the square of
# their number: of more bands than these, those that are needed are put into a dataset of their own first.
MOST_WARPED_BANDS = 8
_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "uint64": "UInt64", "int64": "Int64", "float32": "Float32", "float64": "Float64",
}  # fmt: skip


def warped(rasterio: Any, dataset: Any, grid: Grid) -> Any:
    """``dataset`` on ``grid``, bilinear. One thread: GDAL before 3.12.1 warps wrongly with more.

    An alpha band says what the raster does not cover, where it has no nodata value for that; five times as slow.
    """
    return rasterio.vrt.WarpedVRT(
        dataset, crs=grid.crs, transform=grid.transform, width=grid.width, height=grid.height, num_threads=1,
        resampling=rasterio.enums.Resampling.bilinear, add_alpha=dataset.nodata is None and alpha_band(dataset) is None,
    )  # fmt: skip


def alpha_band(dataset: Any) -> int | None:
    """The alpha band's number (from 1), where the file says that it has one."""
    names = [colour.name for colour in dataset.colorinterp]
    return names.index("alpha") + 1 if "alpha" in names else None


def read_warped(rasterio: Any, source: Any, dataset: Any, bands: Sequence[int], window: Any) -> NDArray[Any]:
    """Some bands (from 1) of ``dataset``, which is ``source`` warped, in a window, (B, h, w)."""
    if dataset.count <= MOST_WARPED_BANDS:
        return np.asarray(dataset.read(window=window)[[band - 1 for band in bands]])
    own = [band for band in bands if band <= source.count]  # the last one may be an alpha that warping adds
    grid = Grid(dataset.height, dataset.width, dataset.crs, dataset.transform)
    with _subset(rasterio, source, own) as some, warped(rasterio, some, grid) as part:
        return np.asarray(part.read(window=window)[: len(bands)])


@contextmanager
def _subset(rasterio: Any, source: Any, bands: Sequence[int]) -> Iterator[Any]:
    """A dataset of some of the bands of ``source``, by a VRT document that is written here."""
    masked = any(flag.name == "per_dataset" for flag in source.mask_flag_enums[0]) and alpha_band(source) is None
    mask = f"<MaskBand>{_band(source, 1, 'mask,1', mask=True)}</MaskBand>" if masked else ""
    parts = "".join(_band(source, number, str(band)) for number, band in enumerate(bands, 1))
    document = (
        f'<VRTDataset rasterXSize="{source.width}" rasterYSize="{source.height}">'
        f"<SRS>{escape(source.crs.to_wkt())}</SRS>"
        f"<GeoTransform>{', '.join(repr(float(x)) for x in source.transform.to_gdal())}</GeoTransform>"
        f"{parts}{mask}</VRTDataset>"
    )
    with rasterio.MemoryFile(document.encode(), ext=".vrt") as file, file.open(driver="VRT") as dataset:
        yield dataset


def _band(source: Any, number: int, band: str, *, mask: bool = False) -> str:
    kind = "Byte" if mask else _TYPES[source.dtypes[0]]
    nodata = "" if mask or source.nodata is None else f"<NoDataValue>{float(source.nodata)!r}</NoDataValue>"
    alpha = "" if mask or int(band) != alpha_band(source) else "<ColorInterp>Alpha</ColorInterp>"
    return (
        f'<VRTRasterBand dataType="{kind}" band="{number}">{nodata}{alpha}<SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{escape(source.name)}</SourceFilename><SourceBand>{band}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
    )
