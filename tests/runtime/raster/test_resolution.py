"""Tests of the resolution on the ground: distances on the ellipsoid, projections, and the warning."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from misgnet_runtime.raster.geotiff import load_rasterio
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.resolution import ground_distance, ground_resolution, resolution_warning

RASTERIO = load_rasterio("a test")
LOCAL = 'LOCAL_CS["a field",UNIT["metre",1]]'


def grid(crs: str | None, west: float, north: float, size: float) -> Grid:
    """Returns 200 x 100 square pixels."""
    return Grid(100, 200, CRS.from_string(crs) if crs else None, from_origin(west, north, size, size))


# Kilometres per degree of latitude and of longitude on WGS 84, as tables state them.
@pytest.mark.parametrize(
    ("latitude", "north", "east"), [(0, 110.574, 111.320), (45, 111.132, 78.847), (60, 111.412, 55.800)]
)
def test_degrees_have_their_length_on_the_ellipsoid(latitude: float, north: float, east: float) -> None:
    assert 1000 * ground_distance((7, latitude), (7, latitude + 1e-3)) == pytest.approx(1000 * north, rel=1e-4)
    assert 1000 * ground_distance((7, latitude), (7 + 1e-3, latitude)) == pytest.approx(1000 * east, rel=1e-4)


def test_distances_across_the_date_line_are_short() -> None:
    assert ground_distance((179.9995, 0), (-179.9995, 0)) == pytest.approx(111.320, rel=1e-4)


@pytest.mark.parametrize(
    ("crs", "west", "north", "size", "metres"),
    [
        ("EPSG:32633", 500_000, 5_000_000, 0.5, 0.5),  # UTM
        ("EPSG:2263", 985_000, 200_000, 2, 0.61),  # New York, in US feet
        ("EPSG:3857", 1_000_000, 8_399_738, 1, 0.5),  # Web Mercator at 60 degrees north
        ("EPSG:4326", 10, 60, 1e-5, (1.11412 * 0.558) ** 0.5),
        ("EPSG:2154", 700_000, 6_600_000, 10, 10),  # Lambert-93
    ],
)
def test_pixels_are_measured_on_the_ground(crs: str, west: float, north: float, size: float, metres: float) -> None:
    assert ground_resolution(RASTERIO, grid(crs, west, north, size)) == pytest.approx(metres, rel=5e-3)


def test_a_rotated_grid_has_the_same_resolution() -> None:
    turned = grid("EPSG:32633", 500_000, 5_000_000, 0.5)
    turned = Grid(100, 200, turned.crs, turned.transform * Affine.rotation(30))
    assert ground_resolution(RASTERIO, turned) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    "unknown",
    [
        grid(None, 0, 10, 1),
        Grid(9, 9, CRS.from_epsg(32633), Affine.identity()),
        grid(LOCAL, 0, 10, 1),
        grid("EPSG:32633", 1e12, 1e12, 1),
    ],
    ids=["no coordinate system", "no transform", "a local coordinate system", "outside of the projection"],
)  # fmt: skip
def test_a_grid_without_a_place_on_the_earth_has_no_resolution(unknown: Grid) -> None:
    assert ground_resolution(RASTERIO, unknown) is None


@pytest.mark.parametrize(
    ("found", "trained", "warned"),
    [(0.5, 0.5, False), (1.0, 0.5, False), (0.25, 0.5, False), (1.1, 0.5, True), (0.2, 0.5, True), (10, 0.5, True),
     (None, 0.5, False), (0.5, None, False)],
)  # fmt: skip
def test_more_than_a_factor_of_2_is_reported(found: Any, trained: Any, warned: bool) -> None:
    warning = resolution_warning(found, trained, "a.tif")
    assert (warning is not None) == warned
    if warning:
        assert all(text in warning for text in ("a.tif", f"{found:g} m", "0.5 m", "gdalwarp -tr"))
