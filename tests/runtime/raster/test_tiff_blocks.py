"""Tests of reading TIFF block tables: they match GDAL's, and no count in a file is trusted."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.source import LocalFile
from misgnet_runtime.raster.tiff_blocks import MOST_BLOCKS, Layer, read_blocks
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.raster.unreadable import Blocks, Tally
from support.scenes import scene, write_raster

H, W = 90, 140
PIXELS = scene(H, W)[0]
VARIANTS: dict[str, dict[str, Any]] = {
    "tiles": {},
    "strips": {"tiled": False, "blockysize": 7},
    "planes": {"interleave": "band", "compress": "none"},
    "big-endian": {"endianness": "big", "compress": "lzw"},
    "BigTIFF": {"bigtiff": "yes"},
    "both": {"bigtiff": "yes", "endianness": "big", "interleave": "band"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_match_those_of_gdal(tmp_path: Path, variant: str) -> None:
    options = dict(VARIANTS[variant])
    path = (
        write_raster(tmp_path / "x.tif", PIXELS, **options) if "tiled" not in options else _strips(tmp_path / "x.tif")
    )
    content = path.read_bytes()
    with rasterio.open(path) as dataset:
        height, width = dataset.block_shapes[0]
        planes = 3 if dataset.interleaving.name == "band" else 1
        rows, columns = -(-H // height), -(-W // width)
        ends = np.empty((planes, rows, columns), np.int64)
        for plane, row, column in np.ndindex(ends.shape):
            tags = (f"BLOCK_{what}_{column}_{row}" for what in ("OFFSET", "SIZE"))
            ends[plane, row, column] = sum(int(dataset.get_tag_item(tag, "TIFF", bidx=plane + 1)) for tag in tags)
    for size in (len(content), len(content) - 1, len(content) * 2 // 3):
        path.write_bytes(content[:size])
        found = read_blocks(path)
        assert (found.height, found.width, found.planes) == (H, W, planes)
        assert (found.image.block_height, found.image.block_width) == (height, width)
        assert np.array_equal(found.image.outside, ends > size) and not found.image.absent.any()


def _strips(path: Path) -> Path:
    with rasterio.open(path, "w", driver="GTiff", height=H, width=W, count=3, dtype="uint8", blockysize=7) as dataset:
        dataset.write(PIXELS)
    return path


def test_only_the_mask_of_the_full_image_is_found(tmp_path: Path) -> None:
    mask = np.full((H, W), 255, np.uint8)
    mask[:, :50] = 0
    path = write_raster(tmp_path / "x.tif", PIXELS, mask=mask)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2])
    found = read_blocks(path)
    assert len(found.masks) == 1 and not found.masks[0].outside.any()


def big_tiff(path: Path, count: int, *, claim: int | None = None, more: bytes = b"", next_one: int = 0) -> Path:
    """Writes a BigTIFF with ``count`` strips of one pixel, with its tables directly after its directory."""
    tags = [(256, 4, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (278, 4, 1, 1)]
    table = 16 + 8 + 20 * (len(tags) + 2) + 8
    for tag, at in ((273, table), (279, table + 8 * count)):
        tags.append((tag, 16, claim or count, at))
    entries = b"".join(struct.pack("<HHQQ", *tag) for tag in sorted(tags))
    start = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(tags))
    path.write_bytes(start + entries + struct.pack("<Q", next_one) + more)
    return path


def test_a_million_blocks_take_bounded_time_and_memory(tmp_path: Path) -> None:
    count = 1_000_000
    tables = np.concatenate([np.full(count, 8, "<u8"), np.ones(count, "<u8")])
    tables[count - 3 : count] = 1 << 60
    path = big_tiff(tmp_path / "x.tif", count, more=tables.tobytes())
    tracemalloc.start()
    start = time.process_time()
    blocks = Blocks(LocalFile(path), read_blocks(path), nodata=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (blocks.count, blocks.unreadable) == (count, (3, 3))
    assert time.process_time() - start < 5 and peak < 160 << 20


@pytest.mark.parametrize("claim", [1 << 40, (1 << 64) - 1])
def test_an_impossible_count_is_refused_at_once(tmp_path: Path, claim: int) -> None:
    with pytest.raises(InputError, match="truncated"):
        read_blocks(big_tiff(tmp_path / "x.tif", 100, claim=claim, more=b"\1" * 2000))


def test_more_blocks_than_fit_into_memory_are_refused(tmp_path: Path) -> None:
    path = big_tiff(tmp_path / "x.tif", MOST_BLOCKS + 1)
    with path.open("r+b") as file:
        file.truncate(16 * MOST_BLOCKS + 1000)  # a sparse file
    with pytest.raises(InputError, match="blocks, and the limit is"):
        read_blocks(path)


def test_a_cycle_of_directories_is_refused(tmp_path: Path) -> None:
    tables = np.full(20, 8, "<u8").tobytes()
    with pytest.raises(InputError, match="list of directories does not end"):
        read_blocks(big_tiff(tmp_path / "x.tif", 10, next_one=16, more=tables))


@pytest.mark.parametrize("content", [b"", b"II*\0", b"II*\0\x08\0\0\0", b"MM\0*" + b"\xff" * 90, b"x" * 300])
def test_files_that_are_not_tiff_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.tif"):
        read_blocks(path)


def test_random_damage_gives_flags_or_an_input_error(tmp_path: Path) -> None:
    content = write_raster(tmp_path / "x.tif", PIXELS, interleave="band").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content)
        for position in random.integers(0, 600, random.integers(1, 6)):
            damaged[position] = random.integers(256)
        (tmp_path / "x.tif").write_bytes(damaged)
        try:
            found = read_blocks(tmp_path / "x.tif")
        except InputError:
            continue
        assert found.image.absent.size <= MOST_BLOCKS


def test_overlapping_blocks_of_two_sizes_are_counted_once(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "x.tif", PIXELS)
    tiff = read_blocks(path)
    flags = np.zeros((1, 3, 5), np.bool_)
    flags[0, 1, 2] = True
    strips = np.zeros((1, 9, 1), np.bool_)
    strips[0, 4] = True  # rows 40 to 50
    image, mask = Layer(32, 32, flags, flags & False), Layer(10, W, strips & False, strips)
    blocks = Blocks(path, type(tiff)(H, W, 1, image, (mask,)), nodata=False)
    wanted = np.zeros((H, W), np.bool_)
    wanted[32:64, 64:96] = wanted[40:50] = True
    assert blocks.unreadable == (2, wanted.sum())
    assert np.array_equal(blocks.gaps([1], Span(30, 61), Span(7, W)), wanted[30:61, 7:])
    assert blocks.unreadable_in(Span(45, 70), Span(80, 100)) == wanted[45:70, 80:100].sum()
    tally = Tally({"after": blocks}, 100, [("after", 32, 64, 32, 32), ("after", 64, 0, 26, 32)])
    assert tally.unread == (3, wanted.sum() + 26 * 32)
