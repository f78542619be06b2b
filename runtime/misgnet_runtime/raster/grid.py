"""Where a raster's pixels lie: two dates have one grid, or none of them says."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.geotiff import has_place, mapped, same_place

_ROUNDING = 0.38  # not 0.5: half pixels are common, and would fall to either side


@dataclass(frozen=True)
class Grid:
    """Size in pixels, coordinate system (rasterio's; None where the file has none) and affine transform."""

    height: int
    width: int
    crs: Any
    transform: Any

    @classmethod
    def of(cls, dataset: Any) -> Grid:
        """The grid of an open raster."""
        return cls(dataset.height, dataset.width, dataset.crs, dataset.transform)

    @property
    def measured(self) -> bool:
        """Whether a transform says where pixels lie, be it in a coordinate system or not."""
        return has_place(self.transform)

    @property
    def placed(self) -> bool:
        """Whether the raster is georeferenced: by a transform, in a coordinate system."""
        return self.crs is not None and self.measured

    @property
    def south_up(self) -> bool:
        """Whether rows run to the north, or columns to the west: a mirror image of the ground."""
        return self.measured and self.transform.determinant > 0

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The least and the largest x and y of the corners, in map coordinates: west, south, east, north."""
        corners = [mapped(self.transform, x, y) for x in (0, self.width) for y in (0, self.height)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def anchor(self) -> tuple[int, int]:
        """Row and column of the pixel at the origin of the map's coordinates, far outside as a rule; else (0, 0).

        Rasters of one grid of pixels, cut anywhere, have it in one place on the ground.
        """
        if not self.measured:
            return 0, 0
        column, row = mapped(~self.transform, 0, 0)
        return floor(row + _ROUNDING), floor(column + _ROUNDING)

    def __str__(self) -> str:
        size = f"{self.width} x {self.height} px"
        system = f"in {self.crs.to_string()}" if self.crs else "without a coordinate system"
        if not self.measured:
            return f"{size} that are not georeferenced" if self.crs is None else f"{size} {system}, without a transform"
        t = self.transform
        turned = "" if t.b == t.d == 0 else f", turned by {t.b:g}, {t.d:g}"
        turned += ", south up" if self.south_up else ""
        return f"{size} of {t.a:.9g} x {abs(t.e):.9g} from ({t.c:.9g}, {t.f:.9g}){turned} {system}"

    def words(self) -> str:
        """The whole of it, as text that is equal for equal grids."""
        return f"{self.height} {self.width} {self.crs.to_wkt() if self.crs else None} {tuple(self.transform)[:6]}"


def check_same(first: Grid, second: Grid) -> None:
    """InputError that shows both grids unless they are one, to half a pixel."""
    problem = difference(first, second)
    if problem:
        advice = "; --align warps the second onto the first" if first.placed and second.placed else ""
        raise InputError(f"the two dates {problem}: before is {first}, after is {second}{advice}")


def difference(first: Grid, second: Grid) -> str | None:
    """Why two grids are not one; None where they are."""
    if (first.height, first.width) != (second.height, second.width):
        return "differ in size"
    if first.measured != second.measured or (first.crs is None) != (second.crs is None):
        return "do not both say where they lie"
    if first.crs != second.crs:
        return "lie in different coordinate systems"
    if first.south_up != second.south_up:
        return "are mirror images: the rows of one run to the south, those of the other to the north"
    if first.measured and not same_place(first.transform, second.transform, first.height, first.width):
        return "lie half a pixel apart or more"
    return None


def check_overlap(rasterio: Any, first: Grid, second: Grid) -> None:
    """InputError unless both rasters are georeferenced and share some ground: what --align needs."""
    if not (first.placed and second.placed):
        raise InputError(f"--align needs two georeferenced rasters: before is {first}, after is {second}")
    try:
        west, south, east, north = rasterio.warp.transform_bounds(second.crs, first.crs, *second.bounds)
    except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:  # PROJ's are only of the latter
        raise InputError(f"after, {second}, cannot be put into {first.crs.to_string()}: {error}") from error
    left, bottom, right, top = first.bounds
    if not (west < right and left < east and south < top and bottom < north):
        raise InputError(f"the two dates share no ground: before is {first}, after is {second}")
