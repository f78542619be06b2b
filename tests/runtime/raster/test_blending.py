"""Tests of overlapping tiles and their blending: coverage, weights, and completed rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misgnet_runtime.errors import UsageError
from misgnet_runtime.raster.blending import Axis, Blender, Layout, RowBlender, lay_out
from misgnet_runtime.raster.tiling import Span


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    tile = draw(st.integers(2, 24))
    overlap = draw(st.integers(0, 3 * tile // 4))
    anchor = draw(st.tuples(st.integers(-99, 99), st.integers(-99, 99)))
    return lay_out(draw(st.integers(1, 90)), draw(st.integers(1, 90)), tile, overlap, anchor)


def blended(layout: Layout, predictions: np.ndarray, first: int = 0) -> list[np.ndarray]:
    """Returns the completed bands of rows of ``predictions`` (rows, columns, T, T)."""
    blender = Blender(layout, first)
    bands = []
    for row in range(first, len(layout.rows.starts)):
        for column in range(len(layout.columns.starts)):
            blender.add(column, predictions[row, column])
        with blender.finish() as rows:
            bands.append(rows.copy())
    return bands


def predictions_of(layout: Layout, seed: int) -> np.ndarray:
    shape = (len(layout.rows.starts), len(layout.columns.starts), layout.rows.tile, layout.rows.tile)
    return np.random.default_rng(seed).random(shape, np.float32)


def whole(layout: Layout, predictions: np.ndarray) -> np.ndarray:
    """Returns the map by its definition: weighted sums over the whole scene."""
    tile = layout.rows.tile
    sums = np.zeros([axis.starts[-1] + tile for axis in (layout.rows, layout.columns)])
    for i, (y, row) in enumerate(zip(layout.rows.starts, layout.rows.weights(), strict=True)):
        for j, (x, column) in enumerate(zip(layout.columns.starts, layout.columns.weights(), strict=True)):
            sums[y : y + tile, x : x + tile] += row[:, None] * column * predictions[i, j]
    return sums[: layout.rows.length, : layout.columns.length]


@settings(max_examples=150, deadline=None)
@given(length=st.integers(1, 300), tile=st.integers(1, 40), data=st.data())
def test_every_pixel_is_covered_and_weights_sum_to_one(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, 3 * tile // 4))
    anchor = data.draw(st.integers(-500, 500))
    axis = Axis(length, tile, overlap, anchor)
    total = np.zeros(max(length, tile))
    for start, weights in zip(axis.starts, axis.weights(), strict=True):
        assert (weights >= 0).all()
        total[start : start + tile] += weights
    np.testing.assert_allclose(total, 1, atol=1e-5)
    # ascending, within the scene if it is large enough, and overlapping by at least ``overlap``
    steps = np.diff(axis.starts)
    assert (steps > 0).all() and (steps <= tile - overlap).all()
    assert axis.starts[0] == 0 and axis.starts[-1] == max(0, length - tile)
    assert all((start - anchor) % (tile - overlap) == 0 for start in axis.starts[1:-1])


def test_weights_are_hann_windows_if_all_tiles_are_on_the_grid() -> None:
    axis = Axis(64 + 3 * 48, 64, 16, anchor=-96)
    assert axis.starts == (0, 48, 96, 144)
    hann = np.sin(np.pi * (np.arange(64) + 0.5) / 64) ** 2
    np.testing.assert_allclose(axis.weights()[1][:16], hann[:16] / (hann[:16] + hann[48:]), atol=1e-6)
    np.testing.assert_allclose(axis.weights()[1][16:48], 1)


@settings(max_examples=100, deadline=None)
@given(tile=st.integers(8, 24), cut=st.integers(1, 60), data=st.data())
def test_the_map_away_from_the_edge_does_not_depend_on_the_cut(tile: int, cut: int, data: st.DataObject) -> None:
    """Predictions may depend on a tile's position on the ground in any way, but the map not on the scene's edge."""
    overlap = data.draw(st.integers(0, tile // 2))

    def one_map(start: int) -> np.ndarray:
        axis = Axis(150 - start, tile, overlap, 7 - start)
        predictions = [np.random.default_rng(start + begin).random(tile) for begin in axis.starts]
        return sum(
            np.pad(weights * one, (begin, axis.length - tile - begin))
            for begin, weights, one in zip(axis.starts, axis.weights(), predictions, strict=True)
        )

    first_on_grid = Axis(150 - cut, tile, overlap, 7 - cut).starts[1]
    same = first_on_grid + overlap
    np.testing.assert_allclose(one_map(cut)[same:], one_map(0)[cut + same :], atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(layout=layouts())
def test_finished_rows_are_contiguous(layout: Layout) -> None:
    spans = [layout.rows.finished(i) for i in range(len(layout.rows.starts))]
    assert spans[0].start == 0 and spans[-1].stop == layout.rows.length
    assert all(a.stop == b.start for a, b in pairwise(spans))
    assert all(0 < span.length <= layout.rows.tile for span in spans)


@settings(max_examples=100, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 9))
def test_completed_bands_form_the_whole_map(layout: Layout, seed: int) -> None:
    predictions = predictions_of(layout, seed)
    np.testing.assert_allclose(np.concatenate(blended(layout, predictions)), whole(layout, predictions), atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 9), data=st.data())
def test_resuming_at_any_row_gives_identical_bytes(layout: Layout, seed: int, data: st.DataObject) -> None:
    predictions = predictions_of(layout, seed)
    bands = blended(layout, predictions)
    done = data.draw(st.integers(0, len(bands) - 1))
    first = layout.rows.first_reaching(layout.rows.starts[done])
    again = blended(layout, predictions, first)
    for band, other in zip(bands[done:], again[done - first :], strict=True):
        assert band.tobytes() == other.tobytes()


@settings(max_examples=50, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 9))
def test_places_in_order_give_the_same_bands(layout: Layout, seed: int) -> None:
    predictions = predictions_of(layout, seed)
    found: list[tuple[Span, np.ndarray]] = []
    blender = RowBlender(layout, lambda rows, values: found.append((rows, values.copy())))
    for place in layout.tiles():
        assert not place.last or len(found) == len(layout.rows.starts) - 1
        blender.add(place, predictions[place.row, place.column])
    assert [rows for rows, _ in found] == [layout.rows.finished(i) for i in range(len(layout.rows.starts))]
    for (_, values), band in zip(found, blended(layout, predictions), strict=True):
        np.testing.assert_array_equal(values, band)


def test_place_cuts_its_window_and_reflects_beyond_the_image() -> None:
    image = np.arange(10 * 5).reshape(10, 5)
    places = list(lay_out(10, 5, 8, 2).tiles())
    assert [(place.row, place.column, place.ends_row, place.last) for place in places] == [
        (0, 0, True, False), (1, 0, True, True),
    ]  # fmt: skip
    for place, start in zip(places, (0, 2), strict=True):
        part = place.cut(image)
        np.testing.assert_array_equal(part[:, :5], image[start : start + 8])
        np.testing.assert_array_equal(part[:, 5:], image[start : start + 8, :1:-1])


@pytest.mark.parametrize("overlap", [-1, 49])
def test_an_overlap_out_of_range_is_refused(overlap: int) -> None:
    with pytest.raises(UsageError, match=f"--overlap is {overlap}; it must be from 0 to 3/4 of a tile, here 48"):
        lay_out(100, 100, 64, overlap)
