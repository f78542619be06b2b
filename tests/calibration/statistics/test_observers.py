"""Tests ranges of activations: exact extremes, percentiles and edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from misgnet_calibration.statistics.calibrators import CANDIDATES, DEFAULT, ENTROPY, MAX, MSE, named, percentile
from misgnet_calibration.statistics.entropy import divergence, even_bins
from misgnet_calibration.statistics.observers import BINS, SAMPLE, Histogram, Range, sampling_step
from misgnet_calibration.statistics.squared_error import occupied, squared_error
from misgnet_runtime.errors import InputError

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


def observed(*values: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in values:
        histogram.observe(np.asarray(part, np.float32))
    return histogram


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, st.integers(1, 300), elements=FLOATS), st.sampled_from([0.9, 0.99, 0.9999, 1.0]))
def test_range_is_within_the_extremes_and_contains_zero(values, share):
    found = observed(values).percentile(share)
    assert min(0.0, values.min()) <= found.low <= 0 <= found.high <= max(0.0, values.max())
    outside = ((values < found.low) | (values > found.high)).mean()
    assert outside <= 1 - share + 1e-9


@settings(deadline=None, max_examples=30)
@given(arrays(np.float32, (4, 50), elements=FLOATS))
def test_order_and_grouping_of_tiles_have_no_effect(values):
    whole, parts = observed(values), observed(*values[::-1])
    assert np.array_equal(whole.counts, parts.counts)
    assert whole.percentile(0.99) == parts.percentile(0.99)


def test_percentile_of_a_normal_distribution_is_accurate():
    found = observed(np.random.default_rng(0).standard_normal(SAMPLE)).percentile(0.99)
    assert found.high == pytest.approx(2.576, rel=0.03)
    assert found.low == pytest.approx(-2.576, rel=0.03)


def test_share_one_gives_the_exact_extremes():
    assert observed(np.array([-1.2345, 0.5, 7.89])).percentile(1.0) == Range(np.float32(-1.2345), np.float32(7.89))


def test_constant_zero_has_an_empty_range():
    for share in (0.99, 1.0):
        assert observed(np.zeros(100)).percentile(share) == Range(0.0, 0.0)


def test_one_sided_values_keep_zero_as_a_bound():
    found = observed(np.linspace(3, 5, 1000)).percentile(0.99)
    assert found.low == 0
    assert 4.9 < found.high <= 5


def test_a_single_huge_value_does_not_reduce_the_resolution_of_others():
    values = np.random.default_rng(0).standard_normal(SAMPLE)
    values[17] = 1e30
    assert observed(values).percentile(0.999).high == pytest.approx(3.29, rel=0.05)
    assert observed(values).percentile(1.0).high == np.float32(1e30)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or Inf"):
        observed(np.array([1.0, bad, 2.0]))


def test_a_histogram_without_observations_is_an_error():
    with pytest.raises(InputError, match="no activation was observed"):
        Histogram().percentile(0.99)


def test_memory_is_constant():
    histogram = observed(*np.random.default_rng(0).standard_normal((50, 1000)))
    assert histogram.counts.shape == (BINS,)
    assert set(vars(histogram)) == {"low", "high", "counts"}


@pytest.mark.parametrize("channels", [64, 320, 512])
def test_sampling_takes_every_channel_equally_often(channels):
    size = 4096 * channels
    picked = np.arange(0, size, sampling_step(size))
    assert len(picked) <= SAMPLE
    visits = np.bincount(picked % channels, minlength=channels)
    assert visits.max() - visits.min() <= 1


def test_a_percentile_calibrator_keeps_the_range_in_its_name():
    histogram = observed(np.arange(1000, dtype=np.float32))
    assert percentile(90).name == "percentile 90"
    assert percentile(90).choose(histogram, True) == histogram.percentile(0.9)
    assert len({c.name for c in CANDIDATES}) == len(CANDIDATES) and DEFAULT in CANDIDATES


def true_error(values: np.ndarray, found: Range, symmetric: bool) -> float:
    """Returns the mean squared error of quantizing ``values`` one by one."""
    step = found.magnitude / 127 if symmetric else (found.high - found.low) / 255
    low, high = (-127, 127) if symmetric else (round(found.low / step), round(found.low / step) + 255)
    return float(((values - np.clip(np.rint(values / step), low, high) * step) ** 2).mean())


def heavy_tailed(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.concatenate((random.standard_normal(20_000), 40 * random.standard_normal(20))).astype(np.float32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("low", [0.0, -0.3, -1.0])
def test_error_from_counts_equals_that_of_the_values(symmetric: bool, low: float) -> None:
    values = heavy_tailed().clip(low * 200, 200)
    for magnitude in (0.5, 3.0, 20.0):
        found = Range(max(low, -1) * magnitude, magnitude)
        counted = squared_error(*occupied(observed(values)), found, symmetric)
        assert counted == pytest.approx(true_error(values, found, symmetric), rel=0.06)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_least_squared_error_is_no_worse_than_any_percentile(symmetric: bool, shift: float) -> None:
    values = heavy_tailed() + np.float32(shift)
    best = true_error(values, MSE.choose(observed(values), symmetric), symmetric)
    for percent in (99.0, 99.9, 99.99, 100):
        assert best <= 1.02 * true_error(values, percentile(percent).choose(observed(values), symmetric), symmetric)


@pytest.mark.parametrize("symmetric", [True, False])
def test_least_squared_error_clips_a_rare_outlier(symmetric: bool) -> None:
    values = np.random.default_rng(0).standard_normal((20, 30_000)).astype(np.float32)
    values[0, 0] = 12
    histogram = observed(*values)
    errors = [true_error(values, c.choose(histogram, symmetric), symmetric) for c in (MSE, MAX)]
    assert errors[0] < 0.6 * errors[1]


def test_entropy_clips_outliers_and_keeps_ranges_without_any() -> None:
    clipped = ENTROPY.choose(observed(heavy_tailed()), True)
    assert 2.5 < clipped.high < 40 and -40 < clipped.low < -2.5
    even = np.linspace(-3, 5, 30_001, dtype=np.float32)
    found = ENTROPY.choose(observed(even), True)
    assert found.high == pytest.approx(5, rel=0.02) and found.low == pytest.approx(-3)


def test_divergence_equals_its_formula() -> None:
    """Each quantized value covers two bins; the expected result is computed by hand for one pair of bins."""
    counts = np.zeros(2048)
    counts[:256] = 4.0
    counts[0], counts[1] = 6.0, 2.0
    total = counts.sum()
    expected = (6 * np.log(6 / 4) + 2 * np.log(2 / 4)) / total
    assert divergence(counts, 256) == pytest.approx(expected)
    counts[2000] = 8.0
    clipped = np.append(counts[:255], counts[255] + 8) / (total + 8)
    q = np.append([4.0, 4.0], counts[2:256]) / total
    assert divergence(counts, 256) == pytest.approx((clipped * np.log(clipped / q)).sum())


def test_even_bins_hold_all_values_except_zeros() -> None:
    values = np.concatenate((np.zeros(500), np.linspace(-2, 2, 40_000)))
    found = even_bins(observed(values), 2.0)
    assert found.sum() == pytest.approx(40_000, rel=0.002)
    assert found[100:-20].std() < 0.1 * found.mean()


@pytest.mark.parametrize("calibrator", CANDIDATES, ids=lambda c: c.name)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_calibrator_is_within_the_extremes_and_contains_zero(calibrator, symmetric: bool) -> None:
    for values in (np.zeros(9), np.array([5.0]), np.array([-2.0, -1.0]), heavy_tailed(), heavy_tailed() + 100):
        found = calibrator.choose(observed(values), symmetric)
        assert min(0, values.min()) <= found.low <= 0 <= found.high <= max(0, values.max())
        assert values.any() <= (found.magnitude > 0)


def test_calibrators_are_found_by_name() -> None:
    assert named("mse") is MSE and named("entropy") is ENTROPY and named("max") is MAX
    found = named("percentile 99.9")
    assert found is not None and found.name == "percentile 99.9"
    assert [named(name) for name in ("percentile", "percentile x", "percentile 101", "percentile 0", "best")] == [
        None
    ] * 5
