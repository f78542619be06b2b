"""Tests the accuracy gate: its verdicts, its rules, and the interval of the F1 drop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misgnet_runtime.accuracy.gate import Interval, bootstrap_drop, decide, f1_drop
from misgnet_runtime.accuracy.metrics import Confusion

COUNTS = st.integers(0, 10**9)
HALF = Confusion(tp=100, fp=100, fn=100, tn=700)  # F1 0.5
THREE_QUARTERS = Confusion(tp=150, fp=50, fn=50, tn=750)  # F1 0.75


def random_images(count: int, seed: int) -> list[Confusion]:
    numbers = np.random.default_rng(seed).integers(0, 50, (count, 4))
    return [Confusion(*map(int, row)) for row in numbers]


def worse(images: list[Confusion]) -> list[Confusion]:
    """Returns counts for the same labels with a third of the true positives missed."""
    return [Confusion(c.tp - c.tp // 3, c.fp, c.fn + c.tp // 3, c.tn) for c in images]


@pytest.mark.parametrize(
    ("limit", "passed"), [(25.001, True), (25.0, True), (24.999, False), (0.0, False), (-1.0, False)]
)
def test_a_drop_passes_up_to_its_limit(limit: float, passed: bool) -> None:
    verdict = decide(THREE_QUARTERS, HALF, 0.9, limit)
    assert (verdict.passed, verdict.value, verdict.limit) == (passed, 25.0, limit)
    assert verdict.rule == "F1 drop"
    assert ("within" in verdict.reason) is passed


@pytest.mark.parametrize(("high", "passed"), [(29.0, True), (30.0, True), (30.1, False)])
def test_upper_rule_compares_the_upper_end_of_the_interval(high: float, passed: bool) -> None:
    verdict = decide(THREE_QUARTERS, HALF, 0.9, 30.0, rule="upper", interval=Interval(20.0, high, 4))
    assert (verdict.passed, verdict.value, verdict.limit) == (passed, high, 30.0)
    assert "25.000" in verdict.reason and f"{high:.3f}" in verdict.reason
    assert decide(THREE_QUARTERS, HALF, 0.9, 30.0, interval=Interval(20.0, high, 4)).passed


def test_the_upper_rule_fails_without_an_interval() -> None:
    verdict = decide(THREE_QUARTERS, THREE_QUARTERS, 1.0, 30.0, rule="upper")
    assert not verdict.passed and "two source images" in verdict.reason


@pytest.mark.parametrize(("limit", "passed"), [(-24.0, True), (-25.0, True), (-26.0, False)])
def test_negative_limit_requires_a_gain(limit: float, passed: bool) -> None:
    assert decide(HALF, THREE_QUARTERS, 0.9, limit).passed is passed


def test_drop_equal_to_its_limit_passes_despite_rounding() -> None:
    reference, engine = Confusion(tp=80, fp=20, fn=20), Confusion(tp=75, fp=25, fn=25)
    assert 100 * (0.8 - 0.75) > 5  # the rounding error of floats
    assert decide(reference, engine, 1.0, 5.0).passed


@settings(deadline=None)
@given(*[COUNTS] * 6)
def test_the_drop_is_the_difference_of_two_f1(a: int, b: int, c: int, d: int, e: int, f: int) -> None:
    drop = f1_drop(Confusion(a, b, c, 0), Confusion(d, e, f, 0))
    if not a + c or not d + f:
        assert drop is None
    else:
        assert drop == pytest.approx(200 * a / (2 * a + b + c) - 200 * d / (2 * d + e + f), abs=1e-6)


@pytest.mark.parametrize(
    ("false_alarms", "agreement", "limit", "passed"),
    [
        (0, 1.0, 0.0, True),
        (5, 0.995, 0.5, True),  # 0.5 points more false alarms
        (6, 0.994, 0.5, False),
        (0, 0.99, 0.5, False),  # fewer false alarms, but other pixels
        (0, 1.0, -0.1, False),  # without changes, a gain cannot be shown
    ],
)
def test_false_alarms_and_agreement_decide_if_no_label_holds_a_change(
    false_alarms: int, agreement: float, limit: float, passed: bool
) -> None:
    verdict = decide(Confusion(tn=1000), Confusion(fp=false_alarms, tn=1000 - false_alarms), agreement, limit)
    assert verdict.passed is passed
    assert verdict.rule == "false alarms and agreement"


def test_fewer_false_alarms_pass() -> None:
    verdict = decide(Confusion(fp=100, tn=900), Confusion(fp=0, tn=1000), 1.0, 0.0)
    assert verdict.passed and verdict.value == 0


def test_interval_matches_a_plain_implementation() -> None:
    reference = random_images(7, seed=1)
    engine = worse(reference)
    rng = np.random.default_rng(3)
    drops = []
    for _ in range(400):
        drawn = rng.integers(0, 7, 7)
        both = [Confusion.total([side[i] for i in drawn]) for side in (reference, engine)]
        drops.append(f1_drop(*both))
    interval = bootstrap_drop(reference, engine, seed=3, resamples=400)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(np.percentile(drops, (2.5, 97.5)), abs=1e-6)
    assert interval.sources == 7


def test_interval_contains_the_drop_and_is_deterministic() -> None:
    reference = random_images(20, seed=2)
    drop = f1_drop(Confusion.total(reference), Confusion.total(worse(reference)))
    first, second = (bootstrap_drop(reference, worse(reference), resamples=500) for _ in range(2))
    assert first is not None and drop is not None
    assert first == second
    assert first != bootstrap_drop(reference, worse(reference), seed=1, resamples=500)
    assert 0 < first.low < drop < first.high


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_bootstrap_is_paired(count: int, seed: int) -> None:
    images = [*random_images(count, seed), Confusion(tp=1)]
    interval = bootstrap_drop(images, images, resamples=50)
    assert interval is not None and (interval.low, interval.high) == (0, 0)


def test_bootstrap_resamples_images_not_pixels() -> None:
    """One bad image of two must affect the interval, independent of the number of pixels."""
    good, bad = Confusion(tp=10**6), Confusion(fn=10**6)
    interval = bootstrap_drop([good, good], [good, bad], resamples=200)
    assert interval is not None and (interval.low, interval.high) == (0, 100)


def test_a_resample_without_change_does_not_count() -> None:
    """One of two images has a change, so a quarter of all resamples has no F1."""
    reference, engine = [Confusion(tp=4), Confusion(tn=4)], [Confusion(tp=2, fn=2), Confusion(tn=4)]
    interval = bootstrap_drop(reference, engine, resamples=200)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((100 / 3, 100 / 3))


@pytest.mark.parametrize("images", [[], [Confusion(tp=5, fp=1)], [Confusion(tn=5), Confusion(tn=6)]])
def test_one_image_or_no_change_gives_no_interval(images: list[Confusion]) -> None:
    assert bootstrap_drop(images, images) is None


def test_thousands_of_images_fit_in_memory() -> None:
    images = random_images(20_000, seed=0)
    interval = bootstrap_drop(images, worse(images), resamples=20)
    assert interval is not None and interval.high - interval.low < 1
