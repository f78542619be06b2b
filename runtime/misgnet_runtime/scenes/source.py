"""Pixels of both dates of a scene by windows: 8-bit RGB, and where there is data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError
from misgnet_runtime.files import is_file
from misgnet_runtime.images import Mask, RgbImage
from misgnet_runtime.scenes.geotiff import GDAL, cache_for, check_memory, load_rasterio, open_geotiff
from misgnet_runtime.scenes.grids import Grid, check_overlap, check_same
from misgnet_runtime.scenes.interpretation import check_interpretation
from misgnet_runtime.scenes.scaling import Scaling
from misgnet_runtime.scenes.warping import alpha_band, read_warped, warped
from misgnet_runtime.tiling import Span

NEUTRAL = (124, 116, 104)  # ImageNet's mean: 0 to the network
# A block that cannot be read: date ("before" or "after"), its first row and column, its height and width.
Hole = tuple[str, int, int, int, int]


@dataclass(frozen=True)
class Pixels:
    """Both dates uint8 (h, w, 3), where both have data, bool (h, w), and the blocks that cannot be read.

    Where either date has no data, both have the same neutral colour: nothing changes there, or at its border.
    """

    before: RgbImage
    after: RgbImage
    valid: Mask
    holes: frozenset[Hole] = frozenset()


@dataclass(frozen=True)
class Raster:
    """One date, open; ``alpha`` is its alpha band (from 1). One thread at a time may read."""

    date: str
    dataset: Any
    alpha: int | None
    source: Any  # the file's own dataset, also where ``dataset`` warps it
    warped: bool = False

    @property
    def name(self) -> str:
        return str(self.source.name)

    def read(self, bands: tuple[int, ...], rows: Span, columns: Span) -> tuple[NDArray[Any], Mask, frozenset[Hole]]:
        """Stored values (B, h, w), where they are data, bool (h, w), and the blocks that cannot be read.

        NaN and Inf are no data, nor is what a mask or an alpha of 0 hides. The file's nodata value is one in
        every band where values are 8-bit, since there it is a colour too, and else in any band.
        """
        rasterio = load_rasterio("a scene")
        try:
            return *self._values(rasterio, bands, rows, columns), frozenset()
        except rasterio.errors.RasterioError:
            return self._by_block(rasterio, bands, rows, columns)

    def rgb(self, scaling: Scaling, rows: Span, columns: Span) -> tuple[RgbImage, Mask, frozenset[Hole]]:
        """The window as 8-bit RGB, uint8 (h, w, 3); the rest as of :meth:`read`."""
        values, valid, holes = self.read(scaling.bands, rows, columns)
        return scaling.apply(values), valid, holes

    def _by_block(
        self, rasterio: Any, bands: tuple[int, ...], rows: Span, columns: Span
    ) -> tuple[NDArray[Any], Mask, frozenset[Hole]]:
        values = np.zeros((len(bands), rows.length, columns.length), self.dataset.dtypes[bands[0] - 1])
        valid = np.zeros(values.shape[1:], np.bool_)
        holes = set()
        for block_rows, block_columns in self._blocks(rows, columns):
            part = _common(rows, block_rows), _common(columns, block_columns)
            inside = part[0].within(rows), part[1].within(columns)
            try:
                values[(slice(None), *inside)], valid[inside] = self._values(rasterio, bands, *part)
            except rasterio.errors.RasterioError:
                where = block_rows.start, block_columns.start, block_rows.length, block_columns.length
                holes.add((self.date, *where))
        return values, valid, frozenset(holes)

    def _blocks(self, rows: Span, columns: Span) -> Iterator[tuple[Span, Span]]:
        """The file's blocks that a window touches."""
        height, width = self.dataset.block_shapes[0]
        for top in range(rows.start // height * height, rows.stop, height):
            for left in range(columns.start // width * width, columns.stop, width):
                yield (
                    Span(top, min(top + height, self.dataset.height)),
                    Span(left, min(left + width, self.dataset.width)),
                )

    def _values(self, rasterio: Any, bands: tuple[int, ...], rows: Span, columns: Span) -> tuple[NDArray[Any], Mask]:
        window = rasterio.windows.Window(columns.start, rows.start, columns.length, rows.length)
        asked = [*bands, *([self.alpha] if self.alpha else [])]
        if self.warped:
            read = read_warped(rasterio, self.source, self.dataset, asked, window)
        else:
            read = self.dataset.read(asked, window=window)
        values = read[: len(bands)]
        valid = self._is_data(values)
        if self.alpha:
            valid &= read[-1] != 0
        if any(flag.name == "per_dataset" for flag in self.dataset.mask_flag_enums[0]) and not self.alpha:
            valid &= self.dataset.read_masks(1, window=window) != 0
        return values, valid

    def _is_data(self, values: NDArray[Any]) -> Mask:
        nodata = self.dataset.nodata
        valid = np.isfinite(values).all(axis=0)
        if nodata is not None and not np.isnan(nodata):
            same = values == np.asarray(nodata).astype(values.dtype)
            valid &= ~(same.all(axis=0) if values.dtype == np.uint8 else same.any(axis=0))
        return np.asarray(valid, np.bool_)


@dataclass(frozen=True)
class Pair:
    """Both dates on the grid of the first; see :func:`open_pair`. One thread at a time may read."""

    before: Raster
    after: Raster
    grid: Grid

    def read(self, scalings: tuple[Scaling, Scaling], rows: Span, columns: Span) -> Pixels:
        """The window's pixels; a block that cannot be read is a hole."""
        before, first, unread = self.before.rgb(scalings[0], rows, columns)
        after, second, holes = self.after.rgb(scalings[1], rows, columns)
        valid = first & second
        return Pixels(neutralised(before, valid), neutralised(after, valid), valid, unread | holes)


def neutralised(image: RgbImage, valid: Mask) -> RgbImage:
    """uint8 (h, w, 3), of the neutral colour where ``valid`` (h, w) is False."""
    return image if valid.all() else np.where(valid[..., None], image, np.array(NEUTRAL, np.uint8))


@contextmanager
def open_pair(before: Path, after: Path, *, align: bool, grid: Grid | None = None) -> Iterator[Pair]:
    """Both rasters, checked as far as their headers go; each thread opens its own.

    Both lie on ``grid``, that of the first without one; with ``align`` what does not is warped onto it as it is read.
    Raises as :func:`open_raster`.
    """
    with open_raster(before, "before", grid, align=align) as first:
        grid = grid or Grid.of(first.dataset)
        with open_raster(after, "after", grid, align=align) as second:
            yield Pair(first, second, grid)


@contextmanager
def open_raster(path: Path, date: str, grid: Grid | None = None, *, align: bool = False) -> Iterator[Raster]:
    """One date, on ``grid`` where there is one; with ``align`` it is warped onto that (bilinear), as it is read.

    InputError names the raster that is no GeoTIFF or too large in one piece, and shows both grids where they differ
    or share nothing.
    """
    rasterio = load_rasterio("a scene")
    with rasterio.Env(**GDAL), ExitStack() as stack:
        source = dataset = stack.enter_context(_checked(rasterio, path))
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=cache_for(dataset)))
        is_warped = align and grid is not None
        if grid is not None and align:
            check_overlap(rasterio, grid, Grid.of(dataset))
            dataset = stack.enter_context(warped(rasterio, dataset, grid))
        elif grid is not None:
            check_same(grid, Grid.of(dataset))
        yield Raster(date, dataset, alpha_band(dataset), source, is_warped)


def _checked(rasterio: Any, path: Path) -> Any:
    if not is_file(path):
        raise InputError(f"raster {path} does not exist")
    dataset = open_geotiff(rasterio, path)
    check_memory(dataset, 0, "a window")
    check_interpretation(dataset, path)
    if kinds := {dtype for dtype in dataset.dtypes if np.dtype(_numpy_name(dtype)).kind not in "uif"}:
        raise InputError(f"raster {path} holds {' and '.join(sorted(kinds))}; a date has real numbers")
    if len(set(dataset.dtypes)) > 1:
        raise InputError(
            f"raster {path} mixes {' and '.join(sorted(set(dataset.dtypes)))}; a date has one type of values"
        )
    return dataset


def _numpy_name(dtype: str) -> str:
    return "complex64" if dtype.startswith("complex") else dtype


def _common(first: Span, second: Span) -> Span:
    return Span(max(first.start, second.start), min(first.stop, second.stop))
