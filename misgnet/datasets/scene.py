"""WHU-CD: one scene of three rasters, read strip by strip and never whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet.datasets.split import PlacedCell
from misgnet.datasets.units import TilePixels
from misgnet_runtime.callables import Mask, RgbImage
from misgnet_runtime.errors import InputError, UnreadableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.geotiff import (
    GDAL,
    check_memory,
    is_georeferencing,
    load_rasterio,
    open_geotiff,
    same_position,
)
from misgnet_runtime.raster.metadata import band_metadata, check_interpretation
from misgnet_runtime.raster.scaling import choose_bands
from misgnet_runtime.raster.tiling import Cell, Span, cut
from misgnet_runtime.raster.unreadable import Blocks
from misgnet_runtime.storage.snapshot import Snapshot


@dataclass(frozen=True)
class Scene:
    """Two dates and a label, open and checked: one size, one grid, 8 bits. One thread at a time may read."""

    before: Any  # rasterio's open datasets
    after: Any
    label: Any
    snapshot: Snapshot  # of the files, before they were opened

    @property
    def height(self) -> int:
        return int(self.before.height)

    @property
    def width(self) -> int:
        return int(self.before.width)

    def read(self, rows: Span) -> tuple[RgbImage, RgbImage, Mask]:
        """Both dates uint8 (h, W, 3) and the label bool (h, W) of ``rows``.

        Where either date has no data both are 0 and nothing is changed. InputError names a damaged raster.
        """
        (before, valid), (after, also_valid) = (_read_date(date, rows) for date in (self.before, self.after))
        label = _read(self.label, rows, 1) != 0
        if not (valid is None and also_valid is None):
            masked = ~(np.ones_like(label) if valid is None else valid)
            if also_valid is not None:
                masked |= ~also_valid
            before[:, masked] = 0
            after[:, masked] = 0
            label[masked] = False
        return np.moveaxis(before, 0, 2), np.moveaxis(after, 0, 2), label


@dataclass(frozen=True)
class StripUnit:
    """The tiles of one row of the grid."""

    scene: Scene
    cells: tuple[PlacedCell, ...]
    tile: int

    @property
    def key(self) -> str:
        return f"rows/{self.cells[0].cell.rows.start:05d}"

    @property
    def sources(self) -> tuple[Path, ...]:
        return ()

    def read(self) -> list[TilePixels]:
        """The tiles from left to right; what lies beyond the scene is reflected."""
        rows = self.cells[0].cell.rows
        before, after, label = self.scene.read(rows)
        self.scene.snapshot.check()
        tiles = []
        for placed in self.cells:
            left = placed.cell.columns.start
            name = f"whu_{rows.start:05d}_{left:05d}"
            window = Cell(Span(0, self.tile), Span(left, left + self.tile), rows, placed.cell.columns)
            dates = cut(before, window), cut(after, window)
            tiles.append(TilePixels(placed.split, name, *dates, cut(label, window)))
        return tiles


def strips(scene: Scene, cells: list[PlacedCell], tile: int) -> tuple[StripUnit, ...]:
    """A unit for each row of the grid that has tiles."""
    rows = groupby(cells, key=lambda placed: placed.cell.rows.start)
    return tuple(StripUnit(scene, tuple(group), tile) for _, group in rows)


@contextmanager
def open_scene(paths: Mapping[str, Path], tile: int) -> Iterator[Scene]:
    """Open the rasters "before", "after" and "label", and check all that can be known before a pixel is read.

    UnavailableError without rasterio; InputError names the raster that is no GeoTIFF of the right kind, is too
    wide to be read in strips of ``tile`` rows, lies on another grid, or is unfinished.
    """
    rasterio = _rasterio()
    snapshot = Snapshot(paths.values())
    with rasterio.Env(**GDAL), ExitStack() as stack:
        opened = {role: stack.enter_context(open_geotiff(rasterio, path)) for role, path in paths.items()}
        for role, dataset in opened.items():
            _check_kind(dataset, is_label=role == "label")
        scene = Scene(**opened, snapshot=snapshot)
        _check_memory(scene, tile)
        for dataset in (scene.after, scene.label):
            _check_grid(scene.before, dataset)
        for role, path in paths.items():
            _check_written(path, opened[role])
        yield scene


def check_label(scene: Scene, tile: int) -> None:
    """InputError unless the label's values are 0 and 255, or 0 and 1, throughout: only the whole of it tells which."""
    white: int | None = None
    for rows in Span(0, scene.height).split(tile):
        values = _read(scene.label, rows, 1)
        bad, white = first_bad_row(values, white)
        if bad is not None:
            found = np.unique(values)
            shown = ", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "")
            raise InputError(
                f"label {scene.label.name} has the values {shown} in rows {rows.start} to {rows.stop - 1}, the first "
                f"that does not fit in row {rows.start + bad}; a label has 0 and 255, or 0 and 1, throughout"
            )


def first_bad_row(label: NDArray[np.uint8], white: int | None) -> tuple[int | None, int | None]:
    """The row of a label (h, W) where a value is neither 0 nor ``white``, and what white is from here on.

    White is None until a value other than 0 is met, and must be 1 or 255.
    """
    if white is None and label.any():
        white = int(label[label != 0][0])
    bad = (label != 0) & (label != (white or 0)) if white in (None, 1, 255) else label != 0
    return (int(np.argmax(bad.any(axis=1))) if bad.any() else None), white


def _rasterio() -> Any:
    return load_rasterio("the WHU-CD scene")


def _check_kind(dataset: Any, is_label: bool) -> None:
    found = f"{dataset.count} bands of {' and '.join(sorted(set(dataset.dtypes)))}"
    wanted = "1 band of uint8" if is_label else "3 bands of uint8, or 4 of which the last is alpha"
    alpha = dataset.count == 4 and dataset.colorinterp[3].name == "alpha"
    if set(dataset.dtypes) != {"uint8"} or not (dataset.count == 1 if is_label else dataset.count == 3 or alpha):
        raise InputError(f"raster {dataset.name} has {found}; {'a label' if is_label else 'a date'} has {wanted}")
    if not is_label:
        _check_meaning(dataset)


def _check_meaning(dataset: Any) -> None:
    """InputError where a date's bands are not red, green and blue of 8 bits, in this order, by what the file says."""
    check_interpretation(dataset, Path(dataset.name))
    colours = [colour.name for colour in dataset.colorinterp]
    if choose_bands(Declared(), colours, 4, dataset.name) != (1, 2, 3):
        raise InputError(
            f"raster {dataset.name} holds its colours in another order than red, green, blue; put them in order: "
            "gdal_translate -b 3 -b 2 -b 1"
        )
    if (found := band_metadata(dataset, (1, 2, 3), colours)).values() != "nothing":
        raise InputError(f"raster {dataset.name} states {found.values()}; a date has plain 8-bit values")


def _check_memory(scene: Scene, tile: int) -> None:
    for dataset in (scene.before, scene.after, scene.label):
        rows = min(tile, dataset.height)
        strip = dataset.width * rows * (2 * 4 + 2)  # bands and mask of both dates, label and its mask
        check_memory(dataset, strip, f"a strip of {rows} rows")


def _check_grid(first: Any, second: Any) -> None:
    """One size, and one place on the ground where both say so; half a pixel is not another place."""
    if first.shape != second.shape:
        raise InputError(
            f"{second.name} is {second.width} x {second.height} px, {first.name} is {first.width} x "
            f"{first.height} px; the rasters of a scene have one size"
        )
    if first.crs and second.crs and first.crs != second.crs:
        raise InputError(f"{first.name} lies in {first.crs}, {second.name} in {second.crs}; a scene has one grid")
    placed = is_georeferencing(first.transform) and is_georeferencing(second.transform)
    if placed and not same_position(first.transform, second.transform, *first.shape):
        raise InputError(
            f"{first.name} lies at {tuple(first.transform)[:6]}, {second.name} at {tuple(second.transform)[:6]} "
            "(the transform's a to f); a scene has one grid"
        )


def _check_written(path: Path, dataset: Any) -> None:
    """UnreadableError where blocks were never written, as a killed writer leaves them: GDAL reads zeros there.

    In a raster that declares a nodata value they are nodata.
    """
    blocks = Blocks.of(path, dataset)
    count = int(blocks.tiff.image.absent.sum())
    if count and not blocks.nodata:
        raise UnreadableError(
            f"raster {path} is unfinished: {plural(count, 'block')} of {blocks.tiff.image.absent.size:,} were never "
            "written, and it declares no nodata value for them; fetch the file again"
        )


def _read_date(dataset: Any, rows: Span) -> tuple[NDArray[np.uint8], Mask | None]:
    """uint8 (3, h, W), and where there is data, bool (h, W); None where there is data everywhere."""
    pixels = _read(dataset, rows, [1, 2, 3])
    if all(flag.name == "all_valid" for flag in dataset.mask_flag_enums[0]):
        return pixels, None
    if dataset.count == 4:
        return pixels, _read(dataset, rows, 4) != 0
    if dataset.nodata is not None:
        return pixels, (pixels != dataset.nodata).any(axis=0)
    return pixels, _read(dataset, rows, 1, mask=True) != 0


def _read(dataset: Any, rows: Span, bands: int | list[int], mask: bool = False) -> Any:
    """uint8 (h, W), or (B, h, W) for a list of ``bands``, over the whole width."""
    rasterio = _rasterio()
    window = rasterio.windows.Window(0, rows.start, dataset.width, rows.length)
    try:
        return (dataset.read_masks if mask else dataset.read)(bands, window=window)
    except rasterio.errors.RasterioError as error:
        raise InputError(
            f"raster {dataset.name} is damaged or truncated: rows {rows.start} to {rows.stop - 1}, columns 0 to "
            f"{dataset.width - 1} cannot be read ({error.__cause__ or error})"
        ) from error
