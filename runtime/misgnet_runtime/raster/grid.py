"""Describes and compares the grids of rasters: size, coordinate system and transform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import Any

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.geotiff import is_georeferencing, mapped, same_position

_ROUNDING = 0.38  # not 0.5: offsets of half a pixel are common, and would round to either side


@dataclass(frozen=True)
class Grid:
    """The grid of a raster's pixels."""

    height: int
    width: int
    crs: Any  # rasterio's coordinate system; None: the file has none
    transform: Any  # affine: (column, row) to map coordinates

    @classmethod
    def of(cls, dataset: Any) -> Grid:
        """Returns the grid of an open raster."""
        return cls(dataset.height, dataset.width, dataset.crs, dataset.transform)

    @property
    def has_transform(self) -> bool:
        """Whether a transform maps pixels to map coordinates, with or without a coordinate system."""
        return is_georeferencing(self.transform)

    @property
    def georeferenced(self) -> bool:
        """Whether the raster has both a transform and a coordinate system."""
        return self.crs is not None and self.has_transform

    @property
    def south_up(self) -> bool:
        """Whether rows run to the north, or columns to the west: the image is mirrored."""
        return self.has_transform and self.transform.determinant > 0

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north: the extremes of the corners in map coordinates."""
        corners = [mapped(self.transform, x, y) for x in (0, self.width) for y in (0, self.height)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def anchor(self) -> tuple[int, int]:
        """Row and column of the pixel at the origin of the map coordinates, usually far outside; (0, 0) by default.

        It is the same point on the ground for all rasters that were cut from one grid of pixels.
        """
        if not self.has_transform:
            return 0, 0
        column, row = mapped(~self.transform, 0, 0)
        return floor(row + _ROUNDING), floor(column + _ROUNDING)

    def __str__(self) -> str:
        size = f"{self.width} x {self.height} px"
        system = f"in {self.crs.to_string()}" if self.crs else "without a coordinate system"
        if not self.has_transform:
            return f"{size}, not georeferenced" if self.crs is None else f"{size} {system}, without a transform"
        t = self.transform
        turned = "" if t.b == t.d == 0 else f", rotated by {t.b:g}, {t.d:g}"
        turned += ", south up" if self.south_up else ""
        return f"{size} of {t.a:.9g} x {abs(t.e):.9g} from ({t.c:.9g}, {t.f:.9g}){turned} {system}"

    def identity(self) -> str:
        """Returns a complete text form, which is equal for equal grids; interrupted runs record it."""
        return f"{self.height} {self.width} {self.crs.to_wkt() if self.crs else None} {tuple(self.transform)[:6]}"


def check_same(first: Grid, second: Grid) -> None:
    """Raises InputError, showing both grids, if they differ by half a pixel or more."""
    problem = difference(first, second)
    if problem:
        both = first.georeferenced and second.georeferenced
        advice = "; --align warps AFTER onto the grid of BEFORE" if both else ""
        raise InputError(f"the two dates {problem}: before is {first}, after is {second}{advice}")


def difference(first: Grid, second: Grid) -> str | None:
    """Returns how two grids differ, or None."""
    if (first.height, first.width) != (second.height, second.width):
        return "differ in size"
    if first.has_transform != second.has_transform or (first.crs is None) != (second.crs is None):
        return "are not both georeferenced"
    if first.crs != second.crs:
        return "have different coordinate systems"
    if first.south_up != second.south_up:
        return "are mirror images: the rows of one run to the south, those of the other to the north"
    if first.has_transform and not same_position(first.transform, second.transform, first.height, first.width):
        return "are offset by half a pixel or more"
    return None


def check_alike(datasets: Mapping[str, Any], of: str) -> None:
    """Raises InputError unless all ``datasets`` (by file name) have one band, on one grid, of one data type."""
    (first, one), *others = datasets.items()
    for name, dataset in datasets.items():
        if dataset.count != 1:
            raise InputError(
                f"{of}: {name} has {dataset.count} bands; give one asset with all bands, or several with one band each"
            )
    for name, dataset in others:
        if problem := difference(Grid.of(one), Grid.of(dataset)):
            raise InputError(
                f"{of}: its assets {problem}: {first} is {Grid.of(one)}, {name} is {Grid.of(dataset)}; choose assets "
                "of one resolution, or resample them first: gdalwarp -tr"
            )
        if dataset.dtypes != one.dtypes:
            raise InputError(
                f"{of}: {first} contains {one.dtypes[0]}, {name} contains {dataset.dtypes[0]}; choose assets of one "
                "data type"
            )


def check_overlap(rasterio: Any, first: Grid, second: Grid) -> None:
    """Raises InputError unless both rasters are georeferenced and overlap, which --align requires."""
    if not (first.georeferenced and second.georeferenced):
        raise InputError(f"--align requires two georeferenced rasters: before is {first}, after is {second}")
    try:
        west, south, east, north = rasterio.warp.transform_bounds(second.crs, first.crs, *second.bounds)
    except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:  # the latter are PROJ's errors
        raise InputError(f"after, {second}, cannot be transformed to {first.crs.to_string()}: {error}") from error
    left, bottom, right, top = first.bounds
    if not (west < right and left < east and south < top and bottom < north):
        raise InputError(f"the two dates do not overlap: before is {first}, after is {second}")
