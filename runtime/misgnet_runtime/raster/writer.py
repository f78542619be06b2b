"""Writes a scene's rasters from its map on disk: into a temporary directory, read back, and renamed together.

The change raster is the thresholded map. Polygons, masks and the quick look are derived from the change raster.
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
from misgnet_runtime.raster.geotiff import GDAL, create_geotiff, load_rasterio, open_geotiff
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.images import write_mask
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.storage.atomic import publish, resumable_errors

UNCHANGED, CHANGED, NODATA = 0, 1, 255
CLASSES = {UNCHANGED: "unchanged", CHANGED: "changed", NODATA: "no data"}
# A TIFF has no transparency per colour; GDAL shows the nodata value as transparent.
_COLOURS = {UNCHANGED: (0, 0, 0, 255), CHANGED: (255, 0, 0, 255), NODATA: (0, 0, 0, 0)}
_BLOCK, _BLOCKS = 256, 8  # side of a block in pixels; blocks written at once
_COUNTED = 1 << 20  # probabilities that are counted at once


@dataclass(frozen=True)
class Coverage:
    """The pixels of a map that have data."""

    share: float  # of all pixels, 0 to 1
    # The rows and columns around them; all if no pixel has data.
    rows: Span
    columns: Span


@dataclass(frozen=True)
class Probabilities:
    """The whole map on disk, float32 (``height``, ``width``); NaN: no data."""

    path: Path
    height: int
    width: int

    def read(self, rows: Span, columns: Span) -> NDArray[np.float32]:
        """Reads a window, float32 (h, w); raises InputError if the file is too short."""
        try:
            mapped = np.memmap(self.path, np.float32, "r", shape=(self.height, self.width))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} is truncated or cannot be read; start over with --restart") from error
        return np.array(mapped[rows.start : rows.stop, columns.start : columns.stop])

    def coverage(self) -> Coverage:
        """Finds the pixels with data; raises InputError if the file is too short."""
        count = 0
        rows, columns = np.zeros(self.height, np.bool_), np.zeros(self.width, np.bool_)
        for part in Span(0, self.height).split(max(1, _COUNTED // self.width)):
            valid = ~np.isnan(self.read(part, Span(0, self.width)))
            rows[part.start : part.stop] = valid.any(axis=1)
            columns |= valid.any(axis=0)
            count += int(np.count_nonzero(valid))
        return Coverage(count / (self.height * self.width), _extent(rows), _extent(columns))


def _extent(found: NDArray[np.bool_]) -> Span:
    places = np.flatnonzero(found)
    return Span(int(places[0]), int(places[-1]) + 1) if len(places) else Span(0, len(found))


@dataclass(frozen=True)
class Counts:
    """Numbers of pixels of a change raster."""

    changed: int
    nodata: int


def classify(probabilities: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Returns the classes of a change raster: 0 unchanged, 1 changed, 255 no data (NaN)."""
    classes = (probabilities > threshold).view(np.uint8)  # UNCHANGED and CHANGED are 0 and 1
    classes[np.isnan(probabilities)] = NODATA
    return classes


@dataclass(frozen=True)
class _Form:
    """The storage format of a raster."""

    dtype: str
    nodata: float
    predictor: int
    resampling: str  # for the overviews of a COG
    band: str  # description of the band


_CHANGE = _Form("uint8", NODATA, 1, "MODE", "change")
_PROBABILITY = _Form("float32", float("nan"), 3, "AVERAGE", "probability of change")


@dataclass(frozen=True)
class MapWriter:
    """Writes the rasters of one map."""

    probabilities: Probabilities
    grid: Grid
    threshold: float
    tags: Mapping[str, str]
    cog: bool  # whether to write cloud-optimised GeoTIFFs

    def change(self, path: Path) -> Counts:
        """Writes the classes, see :func:`classify`; raises StorageError if they cannot be written."""
        changed = nodata = 0

        def classes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
            nonlocal changed, nodata
            found = classify(values, self.threshold)
            changed += int(np.count_nonzero(found == CHANGED))
            nodata += int(np.count_nonzero(found == NODATA))
            return found

        self._write(path, _CHANGE, classes)
        return Counts(changed, nodata)

    def probability(self, path: Path) -> None:
        """Writes float32, 0 to 1 or NaN (no data); raises StorageError if it cannot be written."""
        self._write(path, _PROBABILITY, lambda values: values)

    def _windows(self) -> Iterator[tuple[Span, Span]]:
        """Yields windows (rows, columns) of the raster, one row of blocks after another."""
        for rows in Span(0, self.grid.height).split(_BLOCK):
            for columns in Span(0, self.grid.width).split(_BLOCKS * _BLOCK):
                yield rows, columns

    def _write(self, path: Path, form: _Form, make: Callable[[NDArray[np.float32]], NDArray[Any]]) -> None:
        rasterio = load_rasterio("a scene")
        plain = path.with_name("plain.tif") if self.cog else path
        checksums = []
        with gdal_errors(rasterio, path), rasterio.Env(**GDAL):
            with create_geotiff(rasterio, plain, **self._profile(form)) as dataset:
                dataset.update_tags(**self.tags)
                dataset.set_band_description(1, form.band)
                if form is _CHANGE:
                    dataset.write_colormap(1, _COLOURS)
                    dataset.update_tags(1, **{f"CLASS_{value}": name for value, name in CLASSES.items()})
                for window in self._windows():
                    pixels = make(self.probabilities.read(*window))
                    checksums.append(zlib.crc32(pixels.data))
                    dataset.write(pixels, 1, window=_bounds(*window))
            if self.cog:
                copy = {"compress": "deflate", "overview_resampling": form.resampling, "bigtiff": "IF_SAFER"}
                predictor = "YES" if form.predictor > 1 else "NO"
                rasterio.shutil.copy(plain, path, driver="COG", predictor=predictor, **copy)
                plain.unlink()
            with open_geotiff(rasterio, path) as dataset:
                self._read_back(dataset, checksums)

    def _profile(self, form: _Form) -> dict[str, Any]:
        position = {"crs": self.grid.crs, **({"transform": self.grid.transform} if self.grid.has_transform else {})}
        return {
            "height": self.grid.height, "width": self.grid.width, "count": 1, "dtype": form.dtype,
            "nodata": form.nodata, "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate",
            "predictor": form.predictor, "bigtiff": "IF_SAFER", **position,
        }  # fmt: skip

    def _read_back(self, dataset: Any, checksums: list[int]) -> None:
        """Compares the file with what was written: GDAL may not report a full disk when it closes a file."""
        for window, checksum in zip(self._windows(), checksums, strict=True):
            if zlib.crc32(dataset.read(1, window=_bounds(*window))) != checksum:
                raise StorageError(f"{dataset.name} was not written completely; free some space and rerun the command")


def _bounds(rows: Span, columns: Span) -> tuple[tuple[int, int], tuple[int, int]]:
    return (rows.start, rows.stop), (columns.start, columns.stop)


def is_mask(output: Path) -> bool:
    """Returns whether an output is a PNG mask, by its file name."""
    return output.suffix.lower() == ".png"


def write_png(change: Path, path: Path, tags: Mapping[str, str]) -> None:
    """Writes a change raster as a mask: 255 for changed pixels, else 0; raises StorageError if the disk refuses."""
    rasterio = load_rasterio("a scene")
    with rasterio.Env(**GDAL), open_geotiff(rasterio, change) as dataset:
        changed = dataset.read(1) == CHANGED
    with resumable_errors(path):
        write_mask(path, changed, tags)


@contextmanager
def gdal_errors(rasterio: Any, path: Path) -> Iterator[None]:
    """Converts errors of writing: StorageError if the system refused, InputError if GDAL did."""
    try:
        with resumable_errors(path):
            yield
    except rasterio.errors.RasterioError as error:
        reason: BaseException = error
        while reason.__cause__:  # rasterio's own message is only "see previous exception"
            reason = reason.__cause__
        raise InputError(
            f"{path} cannot be written: {reason}; free some space or choose another -o, then rerun the command"
        ) from error


@contextmanager
def staged(paths: list[Path]) -> Iterator[list[Path]]:
    """Yields a temporary path for each of ``paths``: the same name, in a directory beside it, removed afterwards.

    Files that a killed run left there are removed first.
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


def publish_all(written: list[Path], paths: list[Path]) -> None:
    """Renames complete files to their final ``paths``, the first one last: if it exists, all do."""
    for temporary, path in reversed(list(zip(written, paths, strict=True))):
        with resumable_errors(path):
            publish(temporary, Path(os.path.realpath(path)))
