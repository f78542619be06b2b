"""Tests of small files that declare huge rasters; their cost is measured in a separate process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

resource = pytest.importorskip("resource", reason="Windows cannot limit the memory of a process")
from rasterio.transform import from_origin

from misgnet_runtime.errors import InputError
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from misgnet_runtime.limits import reader
from misgnet_runtime.raster import geotiff
from misgnet_runtime.raster.blending import lay_out
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.geotiff import open_geotiff
from support.bundles import FLOAT, make_bundle
from support.ends import in_child
from support.scenes import read, scene, write_raster

# CPU time and memory: the limits for files with pixels also hold for small files.
SECONDS, MEBIBYTES = reader("geotiff").seconds, 400
BANDS = Declared(bands=(3, 2, 1))
_GRID = {"crs": "EPSG:32633", "transform": from_origin(4e5, 5e6, 0.5, 0.5), "SPARSE_OK": True, "driver": "GTiff"}


def declare(path: Path, height: int, width: int, count: int = 3, **options: Any) -> Path:
    """Writes a raster without any block, so that the file is only a header."""
    profile = {**_GRID, "height": height, "width": width, "count": count, "dtype": "uint8", "nodata": 0, **options}
    with rasterio.open(path, "w", **profile):
        pass
    return path


def tiled(width: int, height: int) -> dict[str, Any]:
    return {"tiled": True, "blockxsize": width, "blockysize": height, "compress": "deflate"}


FAMILIES: dict[str, tuple[int, int, int, dict[str, Any], bool]] = {
    "3,000,000 x 1 px": (1, 3_000_000, 3, {}, False),
    "400 million x 1 px": (1, 400_000_000, 3, tiled(65536, 16), False),
    "1 x 3,000,000 px": (3_000_000, 1, 3, tiled(16, 4096), False),
    "1 x 400 million px": (400_000_000, 1, 3, tiled(16, 65536), False),
    "wider than memory": (65536, 16_000_000, 3, tiled(16384, 8192), False),
    "rows of a million": (256, 1_000_000, 3, {"blockysize": 1, "compress": "deflate"}, False),
    "blocks as high as the scene": (65536, 16384, 3, tiled(16, 65536), False),
    "one block": (40_000, 40_000, 3, {"blockysize": 40_000, "compress": "deflate"}, False),
    "1,200 bands": (64, 64, 1200, {"compress": "deflate"}, True),
    "10,000 bands": (64, 64, 10_000, {"compress": "deflate"}, True),
    "200 bands": (256, 256, 200, tiled(256, 256), True),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_small_files_take_little_time_and_memory(tmp_path: Path, name: str) -> None:
    height, width, count, options, align = FAMILIES[name]
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT])
    before = declare(tmp_path / "before.tif", height, width, count, **options)
    moved = {"transform": from_origin(4e5 + 1, 5e6, 0.5, 0.5)} if align else {}
    after = declare(tmp_path / "after.tif", height, width, count, **options, **moved)
    assert before.stat().st_size < 200_000
    declared = BANDS if count > 3 else Declared()
    scene_options = SceneOptions(before=declared, after=declared, align=align, engine="cpu-float32")

    def run() -> None:
        with suppress(InputError):  # the file may be refused or processed
            predict_scene_files(bundle, before, after, tmp_path / "out.tif", scene_options)

    before_it = held()
    used = measured(run)
    assert used.ru_utime + used.ru_stime < SECONDS
    assert used.ru_maxrss / 1024 - before_it < MEBIBYTES


def held() -> float:
    """Returns the memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measured(body: Callable[[], object]) -> resource.struct_rusage:
    """Returns the resources that a child process uses for ``body``; its memory includes that of this process."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(4 * SECONDS)
            body()
            status = 0
        finally:
            os._exit(status)
    _, status, used = os.wait4(child, 0)
    assert status == 0
    return used


@pytest.mark.parametrize(("height", "width"), [(1, 1_048_577), (1_048_577, 1), (256, 900_000), (10_000, 10_000_000)])
def test_scenes_that_do_not_fit_are_refused(height: int, width: int) -> None:
    with pytest.raises(InputError, match="cut it into parts"):
        lay_out(height, width, 256, 64)


@pytest.mark.parametrize(("height", "width"), [(100_000, 100_000), (1_000_000, 40_000), (1, 1_048_576), (256, 800_000)])
def test_large_scenes_are_laid_out(height: int, width: int) -> None:
    assert lay_out(height, width, 256, 64).columns.length == width


def test_rows_of_a_wide_scene_are_decoded_once(tmp_path: Path) -> None:
    """GDAL's cache holds the blocks of a row of tiles; it is small for rasters stored in tiles."""
    for name, options, least, most in (
        ("rows", {"blockysize": 1}, 2 * 256 * 100_000 * 3, 1 << 30),
        ("tiles", tiled(256, 256), 0, 16 << 20),
        ("large tiles", tiled(2048, 2048), 0, 128 << 20),
    ):
        path = declare(tmp_path / f"{name}.tif", 3000, 100_000, **options)
        with open_geotiff(rasterio, path) as dataset:
            assert least <= geotiff.cache_for(dataset) <= most


def test_rows_of_blocks_stay_in_the_cache_for_the_next_row_of_tiles(tmp_path: Path) -> None:
    """If that takes less than 128 MiB, no block is decoded twice."""
    for side, block, whole in ((4096, 512, True), (16_384, 512, True), (40_000, 512, False)):
        with open_geotiff(rasterio, declare(tmp_path / "a.tif", side, side, **tiled(block, block))) as dataset:
            rows = 2 * 2 * block * side * 3  # of both dates: a row of tiles touches two rows of blocks
            assert (rows < geotiff.cache_for(dataset) <= 128 << 20) is whole
            assert geotiff.cache_for(dataset) <= 128 << 20


def test_blocks_that_would_be_decoded_repeatedly_are_refused(tmp_path: Path) -> None:
    path = declare(tmp_path / "rows.tif", 3000, 800_000, blockysize=1)
    with open_geotiff(rasterio, path) as dataset, pytest.raises(InputError, match="TILED=YES"):
        geotiff.cache_for(dataset)
    path = declare(tmp_path / "columns.tif", 60_000, 160, **tiled(16, 60_000))
    with open_geotiff(rasterio, path) as dataset:
        assert geotiff.cache_for(dataset) >= 60_000 * 160 * 3  # the whole raster stays in the cache


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("hidden", ["nodata", "mask", "alpha", "nothing"])
def test_warping_many_bands_gives_the_same_map_as_warping_three(tmp_path: Path, dtype: str, hidden: str) -> None:
    height, width = 96, 80
    before, after = scene(height, width)
    there = np.full((height, width), 255, np.uint8)
    there[30:60, 20:50] = 0
    bands = after.astype(dtype)
    options: dict[str, Any] = {"transform": from_origin(399_984 + 3, 4_999_992, 0.5, 0.5)}
    if hidden == "nodata":
        bands, options["nodata"] = np.where(there, bands, 1).astype(dtype), 1
    elif hidden == "mask":
        options["mask"] = there
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT])
    write_raster(tmp_path / "before.tif", before)
    maps = []
    for count in (3, 12):
        pixels = np.concatenate([bands] * (count // 3))
        colours = [rasterio.enums.ColorInterp.undefined] * count
        if hidden == "alpha":
            pixels = np.concatenate([pixels, there[None].astype(dtype)])
            colours.append(rasterio.enums.ColorInterp.alpha)
        path = write_raster(tmp_path / f"{count}.tif", pixels, photometric="MINISBLACK", colours=colours, **options)
        scene_options = SceneOptions(
            after=Declared(bands=(1, 2, 3), scale=(1 / 255,)), align=True, engine="cpu-float32"
        )
        predict_scene_files(bundle, tmp_path / "before.tif", path, tmp_path / f"map{count}.tif", scene_options)
        maps.append(read(tmp_path / f"map{count}.tif"))
    both = (maps[0] != 255) & (maps[1] != 255)
    assert both.mean() > (0.75 if hidden == "nothing" else 0.65)
    assert np.mean(maps[0][both] != maps[1][both]) < 0.002
    assert np.mean((maps[0] == 255) != (maps[1] == 255)) < 0.04  # one row and column of pixels along edges


def test_thousands_of_directories_are_refused_quickly(tmp_path: Path) -> None:
    from misgnet_runtime.raster.images import is_raster

    path = tmp_path / "many.tif"
    entry = (254).to_bytes(2, "little") + b"\4\0" + (1).to_bytes(4, "little") + bytes(4)
    parts = [b"II*\0" + (8).to_bytes(4, "little")]
    for number in range(50_000):
        following = 8 + 18 * (number + 1)
        parts.append(b"\1\0" + entry + following.to_bytes(4, "little"))
    path.write_bytes(b"".join(parts))

    def run() -> None:
        with pytest.raises(InputError, match="directories"):
            is_raster(path)

    assert in_child(run) == 0


@pytest.mark.parametrize(
    ("height", "width", "block", "fits"),
    [(1, 60_000, 13_376, False), (60_000, 1, 13_376, False), (1, 40_000, 3_344, True), (100, 100_000, 512, True),
     (1, 1, 8_192, True)],
)  # fmt: skip
def test_blocks_that_are_mostly_outside_of_the_raster_are_refused(
    tmp_path: Path, height: int, width: int, block: int, fits: bool
) -> None:
    """All of them may refer to the same bytes of a small file, and each is decoded whole."""
    with rasterio.open(declare(tmp_path / "a.tif", height, width, **tiled(block, block))) as dataset:
        if fits:
            assert geotiff.cache_for(dataset) >= block * block * 3, "a block is decoded once"
        else:
            with pytest.raises(InputError, match="which are mostly outside of it"):
                geotiff.cache_for(dataset)
