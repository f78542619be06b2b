"""Tests of areas of interest: which files are read, and which tiles and pixels of a map they cover."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pyogrio = pytest.importorskip("pyogrio", reason="scenes need the [geo] extra")
shapely = pytest.importorskip("shapely", reason="scenes need the [geo] extra")

from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform

from misgnet_runtime.errors import InputError
from misgnet_runtime.limits import AREA_BYTES, AREA_POLYGONS, AREA_VERTICES
from misgnet_runtime.raster.area.area_file import read_area
from misgnet_runtime.raster.area.placement import place_area, place_raster
from misgnet_runtime.raster.area.region import Region, count_pixels
from misgnet_runtime.raster.blending import lay_out
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.tiling import Span

UTM, WGS = CRS.from_epsg(32633), CRS.from_epsg(4326)
GRID = Grid(500, 600, UTM, from_origin(399_984, 4_999_992, 0.5, 0.5))
WHOLE = Span(0, 500), Span(0, 600)
SQUARE = shapely.box(400_034, 4_999_892, 400_134, 4_999_942)  # rows 100 to 200, columns 100 to 300


def in_degrees(shape: Any) -> Any:
    return shapely.transform(shape, lambda points: np.column_stack(transform(UTM, WGS, *points.T.tolist())))


def write(path: Path, shapes: list[Any], crs: str, **options: Any) -> Path:
    outlines = np.array(shapely.to_wkb(shapes), object)
    kind = "Unknown" if len({shape.geom_type for shape in shapes}) > 1 else shapes[0].geom_type
    pyogrio.raw.write(path, outlines, [], [], crs=crs, geometry_type=kind, **options)
    return path


def geojson(path: Path, geometry: Any, **more: Any) -> Path:
    found = geometry if isinstance(geometry, dict) else json.loads(shapely.to_geojson(geometry))
    path.write_text(json.dumps({**found, **more}))
    return path


def mask_of(path: Path, grid: Grid = GRID) -> np.ndarray:
    return place_area(read_area(path), grid).mask(Span(0, grid.height), Span(0, grid.width))


def square() -> np.ndarray:
    found = np.zeros((500, 600), np.bool_)
    found[100:200, 100:300] = True
    return found


FILES: dict[str, Callable[[Path], Path]] = {
    "GeoJSON": lambda folder: geojson(folder / "a.geojson", in_degrees(SQUARE)),
    "a feature": lambda folder: geojson(
        folder / "a.json",
        {"type": "Feature", "properties": {"x": [1]}, "geometry": json.loads(shapely.to_geojson(in_degrees(SQUARE)))},
    ),
    "GeoJSON with crs": lambda folder: geojson(
        folder / "a.geojson", SQUARE, crs={"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    ),
    "GDAL's GeoJSON": lambda folder: write(folder / "a.geojson", [SQUARE], "EPSG:32633"),
    "GeoPackage": lambda folder: write(folder / "a.gpkg", [SQUARE], "EPSG:32633"),
    "GeoPackage in degrees": lambda folder: write(folder / "a.gpkg", [in_degrees(SQUARE)], "EPSG:4326"),
    "multipolygons": lambda folder: write(
        folder / "a.gpkg",
        [shapely.MultiPolygon([shapely.box(400_034, 4_999_892, 400_084, 4_999_942)]),
         shapely.MultiPolygon([shapely.box(400_084, 4_999_892, 400_134, 4_999_942)])], "EPSG:32633",
    ),
    "overlapping polygons": lambda folder: write(
        folder / "a.gpkg", [SQUARE, shapely.box(400_084, 4_999_902, 400_134, 4_999_932)], "EPSG:32633"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_pixels_whose_centre_is_inside_belong_to_the_area(tmp_path: Path, case: str) -> None:
    assert np.array_equal(mask_of(FILES[case](tmp_path)), square())


def test_the_centre_of_a_pixel_decides(tmp_path: Path) -> None:
    for step, rows in ((0.2, slice(100, 200)), (0.3, slice(101, 201))):  # 0.4 and 0.6 px
        moved = shapely.transform(SQUARE, lambda points, step=step: points - (0, step))
        found = mask_of(write(tmp_path / f"{step}.gpkg", [moved], "EPSG:32633"))
        assert np.flatnonzero(found.any(axis=1)).tolist() == list(range(rows.start, rows.stop))


def test_edges_are_straight_in_the_areas_own_coordinates(tmp_path: Path) -> None:
    """A parallel of 60 degrees is a curve in UTM: over 3 degrees it leaves the chord by more than a kilometre."""
    grid = Grid(400, 2000, UTM, from_origin(420_000, 6_660_000, 80, 80))
    area = shapely.box(13.6, 59.8, 16.4, 60.0)
    found = mask_of(geojson(tmp_path / "a.geojson", area), grid)
    rows, columns = np.mgrid[0:400, 0:2000] + 0.5
    points = transform(UTM, WGS, (420_000 + 80 * columns).ravel().tolist(), (6_660_000 - 80 * rows).ravel().tolist())
    longitude, latitude = (np.reshape(values, rows.shape) for values in points)
    wanted = (longitude > 13.6) & (longitude < 16.4) & (latitude > 59.8) & (latitude < 60)
    assert wanted.sum() > 100_000 and np.count_nonzero(found != wanted) < 20


ACROSS = [shapely.box(179.995, 10, 180, 10.01), shapely.box(-180, 10, -179.995, 10.01)]
CORNER = [value[0] for value in transform(WGS, CRS.from_epsg(32660), [179.99], [10.02])]


@pytest.mark.parametrize(
    ("grid", "pixels"),
    [
        (Grid(400, 400, WGS, from_origin(179.99, 10.02, 1e-4, 1e-4)), 10_000),
        (Grid(400, 400, WGS, from_origin(-180.01, 10.02, 1e-4, 1e-4)), 10_000),
        (Grid(400, 400, CRS.from_epsg(32660), from_origin(*CORNER, 10, 10)), 12_149),
    ],
)
def test_polygons_cut_at_the_antimeridian_are_one_area(tmp_path: Path, grid: Grid, pixels: int) -> None:
    found = mask_of(geojson(tmp_path / "a.geojson", shapely.MultiPolygon(ACROSS)), grid)
    assert abs(int(found.sum()) - pixels) < 60
    middle = found[np.flatnonzero(found.any(axis=1))].any(axis=0)
    assert np.ptp(np.flatnonzero(middle)) == np.count_nonzero(middle) - 1  # without a gap


def test_crossing_outlines_are_repaired_with_a_warning(tmp_path: Path) -> None:
    bow = shapely.Polygon([(400_034, 4_999_942), (400_134, 4_999_892), (400_134, 4_999_942), (400_034, 4_999_892)])
    area = read_area(write(tmp_path / "a.gpkg", [bow, SQUARE], "EPSG:32633"))
    assert "1 polygon with crossing" in area.warnings[0] and len(area.polygons) == 3
    assert np.array_equal(place_area(area, GRID).mask(*WHOLE), square())


# --- refused files


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_area(path)
    for word in (path.name, *words):
        assert word in str(caught.value)


RING = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
BAD: dict[str, tuple[Any, str]] = {
    "a point": ({"type": "Point", "coordinates": [1, 2]}, "'Point'"),
    "a collection of geometries": ({"type": "GeometryCollection", "geometries": []}, "'GeometryCollection'"),
    "a line in a feature": (
        {"type": "Feature", "geometry": {"type": "LineString", "coordinates": RING}}, "'LineString'",
    ),
    "too few positions": ({"type": "Polygon", "coordinates": [RING[:3]]}, "length >= 4"),
    "a ring that is not closed": ({"type": "Polygon", "coordinates": [[*RING[:3], [0, 1]]]}, "not closed"),
    "text as a number": ({"type": "Polygon", "coordinates": [[["0", "0"]] * 4]}, "float"),
    "no polygon": ({"type": "FeatureCollection", "features": []}, "no polygon"),
    "features without a place": (
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": None}]}, "no polygon",
    ),
    "an unknown crs": (
        {"type": "Polygon", "coordinates": [RING], "crs": {"type": "name", "properties": {"name": "EPSG:1"}}}, "known",
    ),
    "a linked crs": (
        {"type": "Polygon", "coordinates": [RING], "crs": {"type": "link", "properties": {"href": "x"}}}, "link",
    ),
    "a file as crs": (
        {"type": "Polygon", "coordinates": [RING], "crs": {"type": "name", "properties": {"name": "/etc/x.prj"}}},
        "'/etc/x.prj' is not known",
    ),
    "no area": ({"type": "Polygon", "coordinates": [[[0, 0]] * 4]}, "no polygon"),
    "too many polygons": (
        {"type": "MultiPolygon", "coordinates": [[RING]] * (AREA_POLYGONS + 1)}, "more than 1,000 polygons",
    ),
    "too many vertices": (
        {"type": "Polygon", "coordinates": [[[0, 0]] * (AREA_VERTICES + 1)]}, "20,000 vertices",
    ),
    "a list": ([1], "not GeoJSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_other_geojson_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    content, words = BAD[case]
    (tmp_path / "bad.geojson").write_text(json.dumps(content))
    refused(tmp_path / "bad.geojson", words)


def test_a_large_polygon_that_crosses_itself_is_refused_not_repaired(tmp_path: Path) -> None:
    star = np.random.default_rng(0).random((2_000, 2)).tolist()
    refused(
        geojson(tmp_path / "star.geojson", {"type": "Polygon", "coordinates": [[*star, star[0]]]}), "Fix geometries"
    )


def test_missing_large_and_other_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "gone.gpkg", "does not exist")
    (tmp_path / "x.gpkg").mkdir()
    refused(tmp_path / "x.gpkg", "not a regular file")
    with (tmp_path / "large.geojson").open("wb") as file:
        file.truncate(AREA_BYTES + 1)
    refused(tmp_path / "large.geojson", "more than 16 MiB")
    for content in (b"", b"PK\x03\x04", b"<kml/>", b"[" * 100_000, b"SQLite format 3\0" + bytes(4096)):
        (tmp_path / "other.geojson").write_bytes(content)
        refused(tmp_path / "other.geojson", "it is not ")


def altered(folder: Path, *statements: str) -> Path:
    path = write(folder / "bad.gpkg", [SQUARE], "EPSG:32633", layer="area", SPATIAL_INDEX="NO")
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement)
    database.close()
    return path


ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n AS fid, zeroblob(n) AS geom FROM r"
ALTERED: dict[str, tuple[tuple[str, ...], str]] = {
    "a view that never ends": (("DROP TABLE area", f"CREATE VIEW area AS {ENDLESS}"), "not a plain table"),
    "a computed column": (
        ("DROP TABLE area", "CREATE TABLE area (fid INTEGER, geom BLOB AS (zeroblob(1000000000)))",
         "INSERT INTO area VALUES (1)"),
        "computed columns",
    ),
    "two layers": (
        ("INSERT INTO gpkg_contents (table_name, data_type, srs_id) VALUES ('more', 'features', 32633)",
         "INSERT INTO gpkg_geometry_columns VALUES ('more', 'geom', 'POLYGON', 32633, 0, 0)"),
        "2 layers of features (area, more)",
    ),
    "no layer": (("DELETE FROM gpkg_contents",), "0 layers"),
    "no table": (("DROP TABLE area",), "not a plain table"),
    "no coordinate system": (("UPDATE gpkg_geometry_columns SET srs_id = -1",), "number -1, is not defined"),
    "a geometry of another type": ((f"UPDATE area SET geom = x'47500001000000000101000000{'00' * 16}'",), "type 1"),
    "a truncated geometry": (("UPDATE area SET geom = substr(geom, 1, 60)",), "cannot be decoded"),
    "text as a geometry": (("UPDATE area SET geom = 'POLYGON'",), "not in the format"),
    "a name with quotes": (("UPDATE gpkg_geometry_columns SET column_name = 'x\" FROM y --'",), "not in the format"),
}  # fmt: skip


@pytest.mark.parametrize("case", ALTERED)
def test_hostile_and_damaged_geopackages_are_refused(tmp_path: Path, case: str) -> None:
    statements, words = ALTERED[case]
    refused(altered(tmp_path, *statements), words)


def test_lines_in_a_geopackage_are_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "lines.gpkg", [shapely.LineString(SQUARE.exterior)], "EPSG:32633"), "expected polygons")


# --- placement


def test_an_area_beside_the_scene_is_refused_with_both_extents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [shapely.box(500_000, 4_000_000, 500_100, 4_000_100)], "EPSG:32633")
    with pytest.raises(InputError, match=r"no pixel of the scene.*from \(500000, 4000000\).*from \(399984, 4999742\)"):
        place_area(read_area(path), GRID)
    thin = write(tmp_path / "thin.gpkg", [shapely.box(400_034.01, 4_999_892, 400_034.02, 4_999_942)], "EPSG:32633")
    with pytest.raises(InputError, match="covers no pixel"):
        place_area(read_area(thin), GRID)


def test_a_scene_that_is_not_georeferenced_has_no_area(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [SQUARE], "EPSG:32633")
    with pytest.raises(InputError, match="not georeferenced; use georeferenced rasters, or crop"):
        place_area(read_area(path), Grid(500, 600, None, rasterio.Affine.identity()))


def test_all_tiles_that_cover_a_pixel_of_the_area_are_computed(tmp_path: Path) -> None:
    placed = place_area(read_area(write(tmp_path / "a.gpkg", [SQUARE], "EPSG:32633")), GRID)
    layout, inside = lay_out(500, 600, 64, 16), placed.mask(*WHOLE)
    for row in range(len(layout.rows.starts)):
        rows = layout.rows.window(row)
        windows = [layout.columns.window(column) for column in range(len(layout.columns.starts))]
        part = inside[rows.start : rows.stop]
        covering = {column for column, span in enumerate(windows) if part[:, span.start : span.stop].any()}
        tiles = set(Region(placed, None).tiles(layout, row))
        assert covering <= tiles and len(tiles) <= len(covering) + 2
    assert count_pixels(placed, 500, 600) == 20_000


def test_the_outline_of_a_raster_contains_what_it_covers() -> None:
    corner = [value[0] for value in transform(UTM, CRS.from_epsg(32634), [400_100], [4_999_900])]
    source = Grid(300, 300, CRS.from_epsg(32634), from_origin(*corner, 0.5, 0.5))
    placed = place_raster(source, GRID)
    rows, columns = np.mgrid[0:500, 0:600] + 0.5
    there = transform(
        UTM, source.crs, (399_984 + columns / 2).ravel().tolist(), (4_999_992 - rows / 2).ravel().tolist()
    )
    x, y = ((np.reshape(there[0], rows.shape) - corner[0]) * 2, (corner[1] - np.reshape(there[1], rows.shape)) * 2)
    covered = (x > 0) & (x < 300) & (y > 0) & (y < 300)
    found = placed.mask(*WHOLE)
    assert covered.sum() > 10_000 and found[covered].all() and found.sum() < 1.1 * covered.sum()
    assert place_raster(GRID, GRID) is None
