"""A scene's rasters from its map on disk: written in a folder beside their place, read back, and renamed together.

The change raster is the map, thresholded once; all that shows or outlines change is made of it.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.raster.geotiff import GDAL, load_rasterio
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.images import write_mask
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.storage.atomic import publish, resumable_errors

UNCHANGED, CHANGED, NODATA = 0, 1, 255
_COLOURS = {UNCHANGED: (0, 0, 0, 255), CHANGED: (255, 0, 0, 255), NODATA: (0, 0, 0, 0)}
_BLOCK, _BLOCKS = 256, 8  # pixels of a block, and blocks that are written at once


@dataclass(frozen=True)
class Probabilities:
    """The whole map on disk, float32 (``height``, ``width``), NaN without data."""

    path: Path
    height: int
    width: int

    def read(self, rows: Span, columns: Span) -> NDArray[np.float32]:
        """Return a window, float32 (h, w); InputError where the file is shorter than it must be."""
        try:
            mapped = np.memmap(self.path, np.float32, "r", shape=(self.height, self.width))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} is cut off or cannot be read; start anew with --restart") from error
        return np.array(mapped[rows.start : rows.stop, columns.start : columns.stop])


@dataclass(frozen=True)
class Counts:
    """Pixels of a change raster."""

    changed: int
    nodata: int


def classify(probabilities: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return the classes of a change raster: 0 unchanged, 1 changed, 255 without data (NaN)."""
    classes = (probabilities > threshold).view(np.uint8)  # UNCHANGED and CHANGED are 0 and 1
    classes[np.isnan(probabilities)] = NODATA
    return classes


@dataclass(frozen=True)
class _Form:
    """How a raster is stored; ``resampling``: of a COG's overviews."""

    dtype: str
    nodata: float
    predictor: int
    resampling: str


_CHANGE = _Form("uint8", NODATA, 1, "MODE")
_PROBABILITY = _Form("float32", float("nan"), 3, "AVERAGE")


@dataclass(frozen=True)
class MapWriter:
    """Writes rasters of one map, ``probabilities``, on ``grid``, with ``tags``; as COG where asked."""

    probabilities: Probabilities
    grid: Grid
    threshold: float
    tags: Mapping[str, str]
    cog: bool

    def change(self, path: Path) -> Counts:
        """Write the classes, see :func:`classify`; StorageError where they cannot be written."""
        changed = nodata = 0

        def classes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
            nonlocal changed, nodata
            found = classify(values, self.threshold)
            changed += int((found == CHANGED).sum())
            nodata += int((found == NODATA).sum())
            return found

        self._write(path, _CHANGE, classes)
        return Counts(changed, nodata)

    def probability(self, path: Path) -> None:
        """Write float32, 0 to 1, NaN without data; StorageError where it cannot be written."""
        self._write(path, _PROBABILITY, lambda values: values)

    def _windows(self) -> Iterator[tuple[Span, Span]]:
        """Rows and columns of the raster, a row of blocks after the other."""
        for rows in Span(0, self.grid.height).split(_BLOCK):
            for columns in Span(0, self.grid.width).split(_BLOCKS * _BLOCK):
                yield rows, columns

    def _write(self, path: Path, form: _Form, make: Callable[[NDArray[np.float32]], NDArray[Any]]) -> None:
        rasterio = load_rasterio("a scene")
        plain = path.with_name("plain.tif") if self.cog else path
        checksums = []
        with gdal_errors(rasterio, path), rasterio.Env(**GDAL):
            with rasterio.open(plain, "w", **self._profile(form)) as dataset:
                dataset.update_tags(**self.tags)
                if form is _CHANGE:
                    dataset.write_colormap(1, _COLOURS)
                for window in self._windows():
                    pixels = make(self.probabilities.read(*window))
                    checksums.append(zlib.crc32(pixels.data))
                    dataset.write(pixels, 1, window=_bounds(*window))
            if self.cog:
                copy = {"compress": "deflate", "overview_resampling": form.resampling, "bigtiff": "IF_SAFER"}
                predictor = "YES" if form.predictor > 1 else "NO"
                rasterio.shutil.copy(plain, path, driver="COG", predictor=predictor, **copy)
                plain.unlink()
            with rasterio.open(path, driver="GTiff") as dataset:
                self._read_back(dataset, checksums)

    def _profile(self, form: _Form) -> dict[str, Any]:
        placed = {"crs": self.grid.crs, **({"transform": self.grid.transform} if self.grid.measured else {})}
        return {
            "driver": "GTiff", "height": self.grid.height, "width": self.grid.width, "count": 1, "dtype": form.dtype,
            "nodata": form.nodata, "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate",
            "predictor": form.predictor, "bigtiff": "IF_SAFER", **placed,
        }  # fmt: skip

    def _read_back(self, dataset: Any, checksums: list[int]) -> None:
        """A full disk may go unreported when GDAL closes a file: compare what lies there with what was written."""
        for window, checksum in zip(self._windows(), checksums, strict=True):
            if zlib.crc32(dataset.read(1, window=_bounds(*window))) != checksum:
                raise StorageError(f"{dataset.name} was not written whole; make room, and run the same command again")


def _bounds(rows: Span, columns: Span) -> tuple[tuple[int, int], tuple[int, int]]:
    return (rows.start, rows.stop), (columns.start, columns.stop)


def is_mask(output: Path) -> bool:
    """Whether an output is a PNG mask, by its name."""
    return output.suffix.lower() == ".png"


def write_png(change: Path, path: Path) -> None:
    """Write a change raster as a mask: 255 where it is changed, else 0; StorageError where the disk refuses."""
    rasterio = load_rasterio("a scene")
    with rasterio.Env(**GDAL), rasterio.open(change, driver="GTiff") as dataset:
        changed = dataset.read(1) == CHANGED
    with resumable_errors(path):
        write_mask(path, changed)


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
