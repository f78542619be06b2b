"""Overlapping tiles and their blending: every pixel is covered, weights sum to 1, bands are the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misgnet_runtime.errors import UsageError
from misgnet_runtime.scenes.windows import Axis, Blender, Layout, lay_out
from misgnet_runtime.tiling import starts


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    tile = draw(st.integers(2, 24))
    overlap = draw(st.integers(0, 3 * tile // 4))
    return lay_out(draw(st.integers(1, 90)), draw(st.integers(1, 90)), tile, overlap)


def blended(layout: Layout, answers: np.ndarray, first: int = 0) -> list[np.ndarray]:
    """The finished bands of ``answers`` (rows, columns, T, T)."""
    blender = Blender(layout, first)
    bands = []
    for row in range(first, len(layout.rows.starts)):
        for column in range(len(layout.columns.starts)):
            blender.add(column, answers[row, column])
        bands.append(blender.finish())
    return bands


def answers_of(layout: Layout, seed: int) -> np.ndarray:
    shape = (len(layout.rows.starts), len(layout.columns.starts), layout.rows.tile, layout.rows.tile)
    return np.random.default_rng(seed).random(shape, np.float32)


def whole(layout: Layout, answers: np.ndarray) -> np.ndarray:
    """The same map by its definition: weighted sums over the whole scene, by the sum of weights."""
    tile = layout.rows.tile
    hann = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    window = hann[:, None] * hann
    size = [axis.starts[-1] + tile for axis in (layout.rows, layout.columns)]
    sums, weights = np.zeros(size), np.zeros(size)
    for i, y in enumerate(layout.rows.starts):
        for j, x in enumerate(layout.columns.starts):
            sums[y : y + tile, x : x + tile] += window * answers[i, j]
            weights[y : y + tile, x : x + tile] += window
    return (sums / weights)[: layout.rows.length, : layout.columns.length]


@settings(max_examples=150, deadline=None)
@given(length=st.integers(1, 300), tile=st.integers(1, 40), data=st.data())
def test_every_pixel_is_covered_and_weights_sum_to_one(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, 3 * tile // 4))
    axis = Axis(length, tile, tuple(starts(length, tile, overlap)))
    total = np.zeros(max(length, tile))
    for start, weights in zip(axis.starts, axis.weights(), strict=True):
        assert (weights > 0).all()
        total[start : start + tile] += weights
    np.testing.assert_allclose(total, 1, atol=1e-5)
    # strictly onward, within the scene where it can be, and overlapping by what was asked at least
    steps = np.diff(axis.starts)
    assert (steps > 0).all() and (steps <= tile - overlap).all()
    assert axis.starts[0] == 0 and axis.starts[-1] == max(0, length - tile)


@settings(max_examples=100, deadline=None)
@given(layout=layouts())
def test_finished_rows_follow_each_other(layout: Layout) -> None:
    spans = [layout.rows.finished(i) for i in range(len(layout.rows.starts))]
    assert spans[0].start == 0 and spans[-1].stop == layout.rows.length
    assert all(a.stop == b.start for a, b in pairwise(spans))
    assert all(0 < span.length <= layout.rows.tile for span in spans)


@settings(max_examples=100, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 9))
def test_bands_are_the_whole(layout: Layout, seed: int) -> None:
    answers = answers_of(layout, seed)
    np.testing.assert_allclose(np.concatenate(blended(layout, answers)), whole(layout, answers), atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 9), data=st.data())
def test_going_on_from_any_row_gives_the_same_bytes(layout: Layout, seed: int, data: st.DataObject) -> None:
    answers = answers_of(layout, seed)
    bands = blended(layout, answers)
    done = data.draw(st.integers(0, len(bands) - 1))
    first = layout.rows.first_reaching(layout.rows.starts[done])
    again = blended(layout, answers, first)
    for band, other in zip(bands[done:], again[done - first :], strict=True):
        assert band.tobytes() == other.tobytes()


@pytest.mark.parametrize("overlap", [-1, 49])
def test_an_overlap_beyond_the_sensible_is_refused(overlap: int) -> None:
    with pytest.raises(UsageError, match=f"--overlap is {overlap}; it is from 0 to 3/4 of a tile, here 48"):
        lay_out(100, 100, 64, overlap)
