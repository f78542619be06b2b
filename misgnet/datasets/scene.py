"""Reads WHU-CD, one scene of three rasters, in strips, so that it never has to fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet.datasets.split import AssignedCell
from misgnet.datasets.units import TilePixels
from misgnet_runtime.callables import Image, Mask
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
from misgnet_runtime.raster.source import LocalFile
from misgnet_runtime.raster.tiling import Cell, Span, cut
from misgnet_runtime.raster.unreadable import Blocks
from misgnet_runtime.storage.snapshot import Snapshot


@dataclass(frozen=True)
class Scene:
    """Two dates and a label, open and checked: they have one size, one grid and 8 bits. Not thread-safe."""

    before: Any  # open rasterio datasets
    after: Any
    label: Any
    snapshot: Snapshot  # of the files, taken before they were opened

    @property
    def height(self) -> int:
        return int(self.before.height)

    @property
    def width(self) -> int:
        return int(self.before.width)

    def read(self, rows: Span) -> tuple[Image, Image, Mask]:
        """Reads ``rows``: both dates as uint8 (h, W, 3), the label as bool (h, W).

        If a pixel of either date is nodata, both dates are 0 there and the label is "unchanged". Raises InputError
        with the name of a damaged raster.
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
    """A strip of the scene: the tiles of one row of the grid."""

    scene: Scene
    cells: tuple[AssignedCell, ...]
    tile: int  # side of a tile, pixels

    @property
    def key(self) -> str:
        return f"rows/{self.cells[0].cell.rows.start:05d}"

    @property
    def sources(self) -> tuple[Path, ...]:
        return ()

    def read(self) -> list[TilePixels]:
        """Returns the tiles from left to right; pixels outside the scene are filled by reflection."""
        rows = self.cells[0].cell.rows
        before, after, label = self.scene.read(rows)
        self.scene.snapshot.check()
        tiles = []
        for assigned in self.cells:
            left = assigned.cell.columns.start
            name = f"whu_{rows.start:05d}_{left:05d}"
            window = Cell(Span(0, self.tile), Span(left, left + self.tile), rows, assigned.cell.columns)
            dates = cut(before, window), cut(after, window)
            tiles.append(TilePixels(assigned.split, name, *dates, cut(label, window)))
        return tiles


def strips(scene: Scene, cells: list[AssignedCell], tile: int) -> tuple[StripUnit, ...]:
    """Returns a unit for each row of the grid that has tiles."""
    rows = groupby(cells, key=lambda assigned: assigned.cell.rows.start)
    return tuple(StripUnit(scene, tuple(group), tile) for _, group in rows)


@contextmanager
def open_scene(paths: Mapping[str, Path], tile: int) -> Iterator[Scene]:
    """Opens the rasters "before", "after" and "label", and checks everything that does not require reading pixels.

    Raises UnavailableError if rasterio is missing. Raises InputError, naming the raster, if it is not a GeoTIFF of the
    right type, is too wide to be read in strips of ``tile`` rows, has another grid, or is incomplete.
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
    """Raises InputError unless all values of the label are 0 and 255, or 0 and 1; reads the whole label."""
    white: int | None = None
    for rows in Span(0, scene.height).split(tile):
        values = _read(scene.label, rows, 1)
        bad, white = first_bad_row(values, white)
        if bad is not None:
            found = np.unique(values)
            shown = ", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "")
            raise InputError(
                f"label {scene.label.name} has the values {shown} in rows {rows.start} to {rows.stop - 1}, and the "
                f"first invalid one in row {rows.start + bad}; all values must be 0 and 255, or 0 and 1"
            )


def first_bad_row(label: NDArray[np.uint8], white: int | None) -> tuple[int | None, int | None]:
    """Returns the first row of a label (h, W) with a value other than 0 and ``white``, or None, and the new ``white``.

    ``white`` is None before the first value other than 0; it must be 1 or 255.
    """
    if white is None and label.any():
        white = int(label[label != 0][0])
    bad = (label != 0) & (label != (white or 0)) if white in (None, 1, 255) else label != 0
    return (int(np.argmax(bad.any(axis=1))) if bad.any() else None), white


def _rasterio() -> Any:
    return load_rasterio("the WHU-CD scene")


def _check_kind(dataset: Any, is_label: bool) -> None:
    found = f"{plural(dataset.count, 'band')} of {' and '.join(sorted(set(dataset.dtypes)))}"
    wanted = "1 band of uint8" if is_label else "3 bands of uint8, or 4 of which the last is alpha"
    alpha = dataset.count == 4 and dataset.colorinterp[3].name == "alpha"
    if set(dataset.dtypes) != {"uint8"} or not (dataset.count == 1 if is_label else dataset.count == 3 or alpha):
        raise InputError(f"raster {dataset.name} has {found}; {'a label' if is_label else 'a date'} must have {wanted}")
    if not is_label:
        _check_meaning(dataset)


def _check_meaning(dataset: Any) -> None:
    """Raises InputError if the metadata of a date does not describe 8-bit red, green and blue in this order."""
    check_interpretation(dataset, LocalFile(Path(dataset.name)))
    colours = [colour.name for colour in dataset.colorinterp]
    if choose_bands(Declared(), colours, 4, dataset.name) != (1, 2, 3):
        raise InputError(
            f"the bands of raster {dataset.name} are not in the order red, green, blue; reorder them, for example with "
            "gdal_translate -b 3 -b 2 -b 1"
        )
    if (found := band_metadata(dataset, (1, 2, 3), colours)).values() != "nothing":
        raise InputError(f"raster {dataset.name} declares {found.values()}; a date must have plain 8-bit values")


def _check_memory(scene: Scene, tile: int) -> None:
    for dataset in (scene.before, scene.after, scene.label):
        rows = min(tile, dataset.height)
        strip = dataset.width * rows * (2 * 4 + 2)  # bands and mask of both dates, label and its mask
        check_memory(dataset, strip, f"a strip of {rows} rows")


def _check_grid(first: Any, second: Any) -> None:
    """Raises InputError if the sizes differ, or both are georeferenced and differ by more than half a pixel."""
    if first.shape != second.shape:
        raise InputError(
            f"{second.name} is {second.width} x {second.height} px, {first.name} is {first.width} x "
            f"{first.height} px; the rasters of a scene must have the same size"
        )
    if first.crs and second.crs and first.crs != second.crs:
        raise InputError(
            f"{first.name} has the CRS {first.crs}, {second.name} has {second.crs}; the rasters of a scene must have "
            "the same grid"
        )
    georeferenced = is_georeferencing(first.transform) and is_georeferencing(second.transform)
    if georeferenced and not same_position(first.transform, second.transform, *first.shape):
        raise InputError(
            f"{first.name} has the transform {tuple(first.transform)[:6]}, {second.name} has "
            f"{tuple(second.transform)[:6]}; the rasters of a scene must have the same grid"
        )


def _check_written(path: Path, dataset: Any) -> None:
    """Raises UnreadableError if blocks of the raster were never written, unless it declares a nodata value.

    An interrupted writer leaves such blocks, and GDAL reads them as zeros. With a nodata value they are nodata.
    """
    blocks = Blocks.of(LocalFile(path), nodata=dataset.nodata is not None)
    count = int(blocks.tiff.image.absent.sum())
    if count and not blocks.nodata:
        raise UnreadableError(
            f"raster {path} is incomplete: {count:,} of {plural(blocks.tiff.image.absent.size, 'block')} were never "
            "written, and it declares no nodata value; download the file again"
        )


def _read_date(dataset: Any, rows: Span) -> tuple[NDArray[np.uint8], Mask | None]:
    """Returns the pixels, uint8 (3, h, W), and the mask of valid pixels, bool (h, W), or None if all are valid."""
    pixels = _read(dataset, rows, [1, 2, 3])
    if all(flag.name == "all_valid" for flag in dataset.mask_flag_enums[0]):
        return pixels, None
    if dataset.count == 4:
        return pixels, _read(dataset, rows, 4) != 0
    if dataset.nodata is not None:
        return pixels, (pixels != dataset.nodata).any(axis=0)
    return pixels, _read(dataset, rows, 1, mask=True) != 0


def _read(dataset: Any, rows: Span, bands: int | list[int], mask: bool = False) -> Any:
    """Reads ``rows`` in full width as uint8: (h, W) for one band, (B, h, W) for a list of ``bands``."""
    rasterio = _rasterio()
    window = rasterio.windows.Window(0, rows.start, dataset.width, rows.length)
    try:
        return (dataset.read_masks if mask else dataset.read)(bands, window=window)
    except rasterio.errors.RasterioError as error:
        raise InputError(
            f"raster {dataset.name} is damaged or truncated: rows {rows.start} to {rows.stop - 1}, columns 0 to "
            f"{dataset.width - 1} cannot be read ({error.__cause__ or error})"
        ) from error
