"""GeoTIFFs from the map on disk: written in a folder beside their place, read back, renamed when all are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.raster.geotiff import GDAL, load_rasterio
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.probabilities import Probabilities
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.storage.atomic import publish, resumable_errors

UNCHANGED, CHANGED, NODATA = 0, 1, 255
_COLOURS = {UNCHANGED: (0, 0, 0, 255), CHANGED: (255, 0, 0, 255), NODATA: (0, 0, 0, 0)}
_BLOCK, _BLOCKS = 256, 8  # pixels of a block, and blocks that are written at once


@dataclass(frozen=True)
class Counts:
    """Pixels of a change raster."""

    changed: int
    nodata: int


@dataclass(frozen=True)
class MapWriter:
    """Writes rasters of one map, ``probabilities``, on ``grid``, with ``tags``; as COG where asked."""

    probabilities: Probabilities
    grid: Grid
    threshold: float
    tags: Mapping[str, str]
    cog: bool

    def change(self, path: Path) -> Counts:
        """uint8: 0 unchanged, 1 changed, 255 without data; StorageError where it cannot be written."""
        changed = nodata = 0
        for _, classes in self._windows("uint8"):
            changed += int((classes == CHANGED).sum())
            nodata += int((classes == NODATA).sum())
        self._write(path, "uint8", NODATA, 1, "MODE")
        return Counts(changed, nodata)

    def probability(self, path: Path) -> None:
        """float32, 0 to 1, NaN without data; StorageError where it cannot be written."""
        self._write(path, "float32", float("nan"), 3, "AVERAGE")

    def _classes(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        classes = (values > self.threshold).view(np.uint8)  # UNCHANGED and CHANGED are 0 and 1
        classes[np.isnan(values)] = NODATA
        return classes

    def _windows(self, dtype: str) -> Iterator[tuple[Any, NDArray[Any]]]:
        """Windows of the raster, a row of blocks after the other, with their pixels."""
        for rows in Span(0, self.grid.height).split(_BLOCK):
            for columns in Span(0, self.grid.width).split(_BLOCKS * _BLOCK):
                values = self.probabilities.read(rows, columns)
                window = (rows.start, rows.stop), (columns.start, columns.stop)
                yield window, self._classes(values) if dtype == "uint8" else values

    def _write(self, path: Path, dtype: str, nodata: float, predictor: int, resampling: str) -> None:
        rasterio = load_rasterio("a scene")
        plain = path.with_name("plain.tif") if self.cog else path
        with gdal_errors(rasterio, path), rasterio.Env(**GDAL):
            with rasterio.open(plain, "w", **self._profile(dtype, nodata, predictor)) as dataset:
                dataset.update_tags(**self.tags)
                if dtype == "uint8":
                    dataset.write_colormap(1, _COLOURS)
                for window, pixels in self._windows(dtype):
                    dataset.write(pixels, 1, window=window)
            if self.cog:
                copy = {"compress": "deflate", "overview_resampling": resampling, "bigtiff": "IF_SAFER"}
                rasterio.shutil.copy(plain, path, driver="COG", predictor="YES" if predictor > 1 else "NO", **copy)
                plain.unlink()
            with rasterio.open(path, driver="GTiff") as dataset:
                self._read_back(dataset, dtype)

    def _profile(self, dtype: str, nodata: float, predictor: int) -> dict[str, Any]:
        placed = {"crs": self.grid.crs, **({"transform": self.grid.transform} if self.grid.measured else {})}
        return {
            "driver": "GTiff", "height": self.grid.height, "width": self.grid.width, "count": 1, "dtype": dtype,
            "nodata": nodata, "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate",
            "predictor": predictor, "bigtiff": "IF_SAFER", **placed,
        }  # fmt: skip

    def _read_back(self, dataset: Any, dtype: str) -> None:
        """A full disk may go unreported when GDAL closes a file: what was written is compared."""
        for window, pixels in self._windows(dtype):
            if not np.array_equal(dataset.read(1, window=window), pixels, equal_nan=dtype != "uint8"):
                raise StorageError(f"{dataset.name} was not written whole; make room, and run the same command again")


@contextmanager
def gdal_errors(rasterio: Any, path: Path) -> Iterator[None]:
    """Around writing only: StorageError where the system refuses, InputError where GDAL does."""
    try:
        with resumable_errors(path):
            yield
    except rasterio.errors.RasterioError as error:
        reason: BaseException = error
        while reason.__cause__:  # rasterio's own words are "see previous exception"
            reason = reason.__cause__
        raise InputError(
            f"{path} cannot be written: {reason}; make room or choose another -o, and run the same command again"
        ) from error


@contextmanager
def staged(paths: list[Path]) -> Iterator[list[Path]]:
    """For each of ``paths`` a place of the same name, in a folder beside it that is removed in the end.

    What a killed run left there is removed first.
    """
    folders = [path.parent / f".{path.name}.writing" for path in paths]
    try:
        for folder in folders:
            with resumable_errors(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
        yield [folder / path.name for folder, path in zip(folders, paths, strict=True)]
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def publish_all(places: list[Path], paths: list[Path]) -> None:
    """Give complete files their names, the first one last: where it is, all are."""
    for place, path in reversed(list(zip(places, paths, strict=True))):
        with resumable_errors(path):
            publish(place, Path(os.path.realpath(path)))
