"""Where a raster's pixels lie: two dates have one grid, or none of them says."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any

from misgnet_runtime.errors import InputError
from misgnet_runtime.scenes.geotiff import has_place, mapped, same_place

_ROUNDING = 0.38  # not 0.5: half pixels are common, and would fall to either side


@dataclass(frozen=True)
class Grid:
    """Size in pixels, coordinate system and affine transform (rasterio's; None without a place)."""

    height: int
    width: int
    crs: Any
    transform: Any

    @classmethod
    def of(cls, dataset: Any) -> Grid:
        """The grid of an open raster."""
        return cls(dataset.height, dataset.width, dataset.crs, dataset.transform)

    @property
    def placed(self) -> bool:
        return self.crs is not None and has_place(self.transform)

    @property
    def anchor(self) -> tuple[int, int]:
        """Row and column of the pixel at the origin of the map's coordinates, far outside as a rule; else (0, 0).

        Rasters of one grid of pixels, cut anywhere, have it in one place on the ground.
        """
        if not self.placed:
            return 0, 0
        column, row = mapped(~self.transform, 0, 0)
        return floor(row + _ROUNDING), floor(column + _ROUNDING)

    def __str__(self) -> str:
        size = f"{self.width} x {self.height} px"
        if not self.placed:
            return f"{size} without a place on the ground"
        t = self.transform
        turned = "" if t.b == t.d == 0 else f", turned by {t.b:g}, {t.d:g}"
        return f"{size} of {t.a:.9g} x {abs(t.e):.9g} from ({t.c:.9g}, {t.f:.9g}){turned} in {self.crs.to_string()}"

    def words(self) -> str:
        """The whole of it, as text that is equal for equal grids."""
        return f"{self.height} {self.width} {self.crs.to_wkt() if self.crs else None} {tuple(self.transform)[:6]}"


def check_same(first: Grid, second: Grid) -> None:
    """InputError that shows both grids unless they are one, to half a pixel."""
    problem = None
    if (first.height, first.width) != (second.height, second.width):
        problem = "differ in size"
    elif first.placed != second.placed:
        problem = "do not both say where they lie"
    elif first.placed and first.crs != second.crs:
        problem = "lie in different coordinate systems"
    elif first.placed and not same_place(first.transform, second.transform, first.height, first.width):
        problem = "lie half a pixel apart or more"
    if problem:
        advice = "; --align warps the second onto the first" if first.placed and second.placed else ""
        raise InputError(f"the two dates {problem}: before is {first}, after is {second}{advice}")


def check_overlap(rasterio: Any, first: Grid, second: Grid) -> None:
    """InputError unless both rasters say where they lie and share some ground: what --align needs."""
    if not (first.placed and second.placed):
        raise InputError(f"--align needs two rasters with a place: before is {first}, after is {second}")
    edges = rasterio.transform.array_bounds(second.height, second.width, second.transform)
    try:
        west, south, east, north = rasterio.warp.transform_bounds(second.crs, first.crs, *edges)
    except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:  # PROJ's are only of the latter
        raise InputError(f"after, {second}, cannot be put into {first.crs.to_string()}: {error}") from error
    left, bottom, right, top = rasterio.transform.array_bounds(first.height, first.width, first.transform)
    if not (west < right and left < east and south < top and bottom < north):
        raise InputError(f"the two dates share no ground: before is {first}, after is {second}")
