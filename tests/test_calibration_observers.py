"""Ranges of activations: exact extremes, percentiles, and what happens at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from misgnet_calibration.calibrators import CANDIDATES, DEFAULT, percentile
from misgnet_calibration.observers import BINS, SAMPLE, Histogram, Range, sampling_step
from misgnet_runtime.errors import InputError

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


def seen(*values: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in values:
        histogram.observe(np.asarray(part, np.float32))
    return histogram


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, st.integers(1, 300), elements=FLOATS), st.sampled_from([0.9, 0.99, 0.9999, 1.0]))
def test_range_lies_within_the_extremes_and_holds_zero(values, share):
    found = seen(values).percentile(share)
    assert min(0.0, values.min()) <= found.low <= 0 <= found.high <= max(0.0, values.max())
    outside = ((values < found.low) | (values > found.high)).mean()
    assert outside <= 1 - share + 1e-9


@settings(deadline=None, max_examples=30)
@given(arrays(np.float32, (4, 50), elements=FLOATS))
def test_order_and_grouping_of_tiles_do_not_matter(values):
    whole, parts = seen(values), seen(*values[::-1])
    assert np.array_equal(whole.counts, parts.counts)
    assert whole.percentile(0.99) == parts.percentile(0.99)


def test_percentile_of_a_normal_distribution():
    found = seen(np.random.default_rng(0).standard_normal(SAMPLE)).percentile(0.99)
    assert found.high == pytest.approx(2.576, rel=0.03)
    assert found.low == pytest.approx(-2.576, rel=0.03)


def test_whole_share_gives_exact_extremes():
    assert seen(np.array([-1.2345, 0.5, 7.89])).percentile(1.0) == Range(np.float32(-1.2345), np.float32(7.89))


def test_constant_zero_has_an_empty_range():
    for share in (0.99, 1.0):
        assert seen(np.zeros(100)).percentile(share) == Range(0.0, 0.0)


def test_one_sided_values_keep_zero_as_a_bound():
    found = seen(np.linspace(3, 5, 1000)).percentile(0.99)
    assert found.low == 0
    assert 4.9 < found.high <= 5


def test_a_single_huge_value_costs_the_others_no_resolution():
    values = np.random.default_rng(0).standard_normal(SAMPLE)
    values[17] = 1e30
    assert seen(values).percentile(0.999).high == pytest.approx(3.29, rel=0.05)
    assert seen(values).percentile(1.0).high == np.float32(1e30)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or Inf"):
        seen(np.array([1.0, bad, 2.0]))


def test_nothing_observed_is_an_error():
    with pytest.raises(InputError, match="no activation was observed"):
        Histogram().percentile(0.99)


def test_memory_is_constant():
    histogram = seen(*np.random.default_rng(0).standard_normal((50, 1000)))
    assert histogram.counts.shape == (BINS,)
    assert set(vars(histogram)) == {"low", "high", "counts"}


@pytest.mark.parametrize("channels", [64, 320, 512])
def test_the_sample_meets_every_channel_equally_often(channels):
    size = 4096 * channels
    picked = np.arange(0, size, sampling_step(size))
    assert len(picked) <= SAMPLE
    visits = np.bincount(picked % channels, minlength=channels)
    assert visits.max() - visits.min() <= 1


def test_a_calibrator_keeps_the_range_that_its_name_says():
    histogram = seen(np.arange(1000, dtype=np.float32))
    assert percentile(90).name == "percentile 90"
    assert percentile(90).choose(histogram) == histogram.percentile(0.9)
    assert len({c.name for c in CANDIDATES}) == len(CANDIDATES) and DEFAULT in CANDIDATES
