"""Tests the reduced pictures of a scene: means of valid pixels, any change, and the same result in small strips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from misgnet_runtime.raster import overview
from misgnet_runtime.raster.overview import Overview, SceneReader, step_for
from misgnet_runtime.raster.reader import open_pair
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.tiling import Span
from support.scenes import scene, write_raster

H, W = 70, 101
BEFORE, AFTER = scene(H, W)
PLAIN = Scaling((1, 2, 3), None, (0.0,), "")
NODATA = np.zeros((H, W), bool)
NODATA[:20, :30] = True
CHANGED = np.random.default_rng(1).random((H, W)) > 0.97


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[SceneReader]:
    paths = [
        write_raster(tmp_path / "before.tif", BEFORE),
        write_raster(tmp_path / "after.tif", np.where(NODATA, 0, AFTER).astype(np.uint8), nodata=0),
    ]
    change = write_raster(tmp_path / "change.tif", CHANGED[None].astype(np.uint8))
    with open_pair(*paths, align=False) as pair, rasterio.open(change) as classes:
        yield SceneReader(pair, (PLAIN, PLAIN), classes)


def expected(rows: Span, columns: Span, step: int) -> tuple[np.ndarray, ...]:
    """Returns means of both dates, whether valid and whether changed, block by block."""
    found: list[list[tuple[object, ...]]] = []
    for top in range(rows.start, rows.stop, step):
        found.append([])
        for left in range(columns.start, columns.stop, step):
            block = slice(top, min(top + step, rows.stop)), slice(left, min(left + step, columns.stop))
            valid = ~NODATA[block]
            dates = (image[(slice(None), *block)][:, valid] for image in (BEFORE, AFTER))
            means = (np.floor(date.mean(1) + 0.5) if valid.any() else np.zeros(3) for date in dates)
            found[-1].append((*means, valid.any(), CHANGED[block].any()))
    return tuple(np.array([[block[part] for block in row] for row in found]) for part in range(4))


def whole(reader: SceneReader, most: int) -> Overview:
    return reader.fitting(Span(0, H), Span(0, W), most)


def check(found: Overview, rows: Span, columns: Span, step: int) -> None:
    before, after, valid, changed = expected(rows, columns, step)
    assert (found.before == before).all() and (found.after == after).all()
    assert (found.valid == valid).all() and (found.changed == changed).all()


@pytest.mark.parametrize("step", [1, 2, 7, 33, 200])
@pytest.mark.parametrize(("at_once", "width"), [(8 << 20, 8192), (1200, 40)])
def test_blocks_are_means_of_valid_pixels(
    reader: SceneReader, monkeypatch: pytest.MonkeyPatch, step: int, at_once: int, width: int
) -> None:
    monkeypatch.setattr(overview, "_AT_ONCE", at_once)
    monkeypatch.setattr(overview, "_WIDTH", width)
    for rows, columns in ((Span(0, H), Span(0, W)), (Span(11, 60), Span(28, 77))):
        check(reader.read(rows, columns, step), rows, columns, step)


def test_an_overview_is_reduced_further(reader: SceneReader) -> None:
    found = whole(reader, 1000)
    assert found.reduced(101) is found
    check(found.reduced(15), Span(0, H), Span(0, W), 7)
    assert found.reduced(15).step == 7 and whole(reader, 51).reduced(10).step == 12


def test_an_overview_has_at_most_the_size_that_is_asked_for(reader: SceneReader) -> None:
    for most, shape in ((1000, (H, W)), (101, (H, W)), (100, (35, 51)), (10, (7, 10)), (1, (1, 1))):
        found = whole(reader, most)
        assert found.valid.shape == found.before.shape[:2] == shape
    assert step_for(Span(0, 8192), Span(0, 100), 2048) == 4
