"""Tests files with one band each that are read as one raster: same pixels, gaps and nodata as of one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from rasterio.transform import from_origin

from misgnet_runtime.errors import UnreadableError
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.reader import open_raster
from misgnet_runtime.raster.remote import RemoteOptions
from misgnet_runtime.raster.stac.date import ItemDate
from misgnet_runtime.raster.stac.locate import locate_item
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.raster.unreadable import Tally, Values
from support.scenes import PLACE, write_raster
from support.stac import COLOURS, single_band_assets, three_bands, write_item

H, W = 130, 150
BANDS = (1, 2, 3)
PIXELS = np.random.default_rng(0).integers(1000, 9000, (3, H, W)).astype(np.uint16)
PIXELS[0, 5:9, 5:9] = PIXELS[1, 60:64, 70:74] = 0
PIXELS[:, 100:104, 20:24] = 0


def dates(folder: Path, pixels: NDArray[Any] = PIXELS, **options: Any) -> tuple[ItemDate, ItemDate]:
    """Writes the bands to one file, and to a file each; returns an item of each."""
    write_raster(folder / "rgb.tif", pixels, **options)
    for colour, band in zip(COLOURS, pixels, strict=True):
        write_raster(folder / f"{colour}.tif", band[None], **options)
    stated = {"nodata": 0}
    one = write_item(folder / "one.json", {"data": three_bands("rgb.tif", **stated)})
    some = write_item(folder / "some.json", single_band_assets(**stated))
    offline = RemoteOptions()
    return locate_item(str(one), None, offline), locate_item(str(some), COLOURS, offline)


def read(date: ItemDate, grid: Grid | None = None, *, rows: Span, columns: Span) -> Values:
    with open_raster(date, "before", grid, align=grid is not None) as raster, raster.in_thread():
        return raster.read(BANDS, rows, columns)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_stack_has_the_pixels_of_one_file(tmp_path: Path, dtype: str) -> None:
    one, some = dates(tmp_path, (PIXELS // 40).astype(dtype))
    for rows, columns in ((Span(0, H), Span(0, W)), (Span(3, 110), Span(10, 149))):
        expected, found = (read(date, rows=rows, columns=columns) for date in (one, some))
        assert np.array_equal(expected[0], found[0]) and expected[0].dtype == found[0].dtype
        assert np.array_equal(expected[1], found[1]) and 0 < found[1].mean() < 1
        assert not found[2]


def test_nodata_of_8_bit_values_is_where_all_files_have_it(tmp_path: Path) -> None:
    _, some = dates(tmp_path, (PIXELS // 40).astype(np.uint8))
    valid = read(some, rows=Span(0, H), columns=Span(0, W))[1]
    assert valid[5:9, 5:9].all() and not valid[100:104, 20:24].any()


def test_files_may_state_different_nodata_values(tmp_path: Path) -> None:
    dates(tmp_path)
    assets = single_band_assets(nodata=0) | {"green": single_band_assets(nodata=int(PIXELS[1, 9, 9]))["green"]}
    some = locate_item(str(write_item(tmp_path / "some.json", assets)), COLOURS, RemoteOptions())
    valid = read(some, rows=Span(0, H), columns=Span(0, W))[1]
    assert not valid[9, 9] and valid[60:64, 70:74].all()
    assert np.array_equal(valid, (PIXELS[0] != 0) & (PIXELS[1] != PIXELS[1, 9, 9]) & (PIXELS[2] != 0))


def test_a_warped_stack_is_near_the_warped_file(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:H, :W]
    smooth = np.stack([1000 + 9 * rows, 2000 + 7 * columns, 3000 + 3 * (rows + columns)]).astype(np.uint16)
    smooth[:, 100:104, 20:24] = 0
    one, some = dates(tmp_path, smooth)
    transform = from_origin(PLACE["transform"].c + 3.3, PLACE["transform"].f - 4.4, 0.6, 0.6)
    grid = Grid(90, 110, rasterio.crs.CRS.from_string("EPSG:32633"), transform)
    expected, found = (read(date, grid, rows=Span(0, 90), columns=Span(0, 110)) for date in (one, some))
    both = expected[1] & found[1]
    assert both.mean() > 0.9 and (expected[1] != found[1]).mean() < 0.05
    assert np.abs(expected[0][:, both].astype(int) - found[0][:, both]).max() < 8  # about one pixel's step


def _truncate(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def test_unreadable_blocks_of_all_files_are_counted_once_and_named(tmp_path: Path) -> None:
    one, some = dates(tmp_path, compress="none")
    for name in ("red", "green"):
        _truncate(tmp_path / f"{name}.tif", 0.7)
    with open_raster(some, "before") as raster:
        tally = Tally({"before": raster.blocks}, 100)
        values, valid, unreadable = raster.read(BANDS, Span(0, H), Span(0, W))
        tally.add(unreadable)
        with pytest.raises(UnreadableError, match=r"red.tif, .*green.tif has \d+ unreadable blocks \(\d"):
            Tally({"before": raster.blocks}, 1)
        each = [part.blocks.unreadable for part in raster.parts]
    missing = np.zeros((H, W), bool)
    with open_raster(some.files[0].file, "before") as red:
        missing |= ~red.read((1,), Span(0, H), Span(0, W))[1]
    assert each[0] == each[1] and each[0][0] > 0 and each[2] == (0, 0)
    assert tally.unread == (2 * each[0][0], each[0][1]) and not valid[missing].any()
    assert values[2, ~missing].any() and one.files


def test_a_block_that_does_not_decode_leaves_the_others(tmp_path: Path) -> None:
    _, some = dates(tmp_path)
    path = tmp_path / "blue.tif"
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    values, valid, unreadable = read(some, rows=Span(0, H), columns=Span(0, W))
    assert unreadable == {("before", 32, 32, 32, 32)} and not valid[32:64, 32:64].any()
    assert np.array_equal(values[:2], PIXELS[:2])
