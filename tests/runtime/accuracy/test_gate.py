"""Tests the accuracy gate: its verdicts, its rules, and the interval of the F1 drop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misgnet_runtime.accuracy.gate import Interval, Intervals, bootstrap, decide, f1_drop, f1_ratio
from misgnet_runtime.accuracy.limit import F1Limit, requested_limit
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.bundle.manifest import GateRule
from misgnet_runtime.errors import UsageError

COUNTS = st.integers(0, 10**9)
HALF = Confusion(tp=100, fp=100, fn=100, tn=700)  # F1 0.5
THREE_QUARTERS = Confusion(tp=150, fp=50, fn=50, tn=750)  # F1 0.75


def points(max_f1_drop: float) -> F1Limit:
    return F1Limit(max_f1_drop=max_f1_drop)


def of_drop(low: float, high: float) -> Intervals:
    return Intervals(Interval(low, high, 4), None)


def drop_interval(
    reference: list[Confusion], engine: list[Confusion], seed: int = 0, resamples: int = 10_000
) -> Interval | None:
    found = bootstrap(reference, engine, seed, resamples)
    return found.drop if found else None


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
    verdict = decide(THREE_QUARTERS, HALF, 0.9, points(limit))
    assert (verdict.passed, verdict.value, verdict.limit) == (passed, 25.0, limit)
    assert verdict.rule == "F1 drop"
    assert ("within" in verdict.reason) is passed


@pytest.mark.parametrize(("high", "passed"), [(29.0, True), (30.0, True), (30.1, False)])
def test_upper_rule_compares_the_upper_end_of_the_interval(high: float, passed: bool) -> None:
    verdict = decide(THREE_QUARTERS, HALF, 0.9, points(30.0), rule="upper", intervals=of_drop(20.0, high))
    assert (verdict.passed, verdict.value, verdict.limit) == (passed, high, 30.0)
    assert "25.000" in verdict.reason and f"{high:.3f}" in verdict.reason
    assert decide(THREE_QUARTERS, HALF, 0.9, points(30.0), intervals=of_drop(20.0, high)).passed


def test_the_upper_rule_fails_without_an_interval() -> None:
    verdict = decide(THREE_QUARTERS, THREE_QUARTERS, 1.0, points(30.0), rule="upper")
    assert not verdict.passed and "two source images" in verdict.reason


@pytest.mark.parametrize(("limit", "passed"), [(-24.0, True), (-25.0, True), (-26.0, False)])
def test_negative_limit_requires_a_gain(limit: float, passed: bool) -> None:
    assert decide(HALF, THREE_QUARTERS, 0.9, points(limit)).passed is passed


def test_drop_equal_to_its_limit_passes_despite_rounding() -> None:
    reference, engine = Confusion(tp=80, fp=20, fn=20), Confusion(tp=75, fp=25, fn=25)
    assert 100 * (0.8 - 0.75) > 5  # the rounding error of floats
    assert decide(reference, engine, 1.0, points(5.0)).passed


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
    verdict = decide(Confusion(tn=1000), Confusion(fp=false_alarms, tn=1000 - false_alarms), agreement, points(limit))
    assert verdict.passed is passed
    assert verdict.rule == "false alarms and agreement"


@pytest.mark.parametrize(("disagreeing", "passed"), [(0, True), (5, True), (6, False)])
def test_agreement_alone_decides_without_labels(disagreeing: int, passed: bool) -> None:
    verdict = decide(
        Confusion(fp=100, tn=900), Confusion(fp=100 - disagreeing, tn=900 + disagreeing), 1 - disagreeing / 1000,
        points(0.5), labelled=False,
    )  # fmt: skip
    assert verdict.passed is passed and verdict.rule == "agreement"
    assert verdict.reason.startswith("F1 was not measured (no labels): ")


@pytest.mark.parametrize(("agreement", "passed"), [(0.9, True), (0.899, False)])
@pytest.mark.parametrize("limit", [F1Limit(min_f1_ratio=0.999), F1Limit(max_f1_drop=1.0)])
def test_engine_with_other_masks_fails_if_f1_cannot_tell(limit: F1Limit, agreement: float, passed: bool) -> None:
    blind = Confusion(fn=100, tn=900)
    verdict = decide(blind, Confusion(fp=100, fn=100, tn=800), agreement, limit)
    assert verdict.passed is passed
    assert ("broken, not just lossy" in verdict.reason) is not passed


def test_fewer_false_alarms_pass() -> None:
    verdict = decide(Confusion(fp=100, tn=900), Confusion(fp=0, tn=1000), 1.0, points(0.0))
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
    interval = drop_interval(reference, engine, seed=3, resamples=400)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(np.percentile(drops, (2.5, 97.5)), abs=1e-6)
    assert interval.sources == 7


def test_interval_contains_the_drop_and_is_deterministic() -> None:
    reference = random_images(20, seed=2)
    drop = f1_drop(Confusion.total(reference), Confusion.total(worse(reference)))
    first, second = (drop_interval(reference, worse(reference), resamples=500) for _ in range(2))
    assert first is not None and drop is not None
    assert first == second
    assert first != drop_interval(reference, worse(reference), seed=1, resamples=500)
    assert 0 < first.low < drop < first.high


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_bootstrap_is_paired(count: int, seed: int) -> None:
    images = [*random_images(count, seed), Confusion(tp=1)]
    interval = drop_interval(images, images, resamples=50)
    assert interval is not None and (interval.low, interval.high) == (0, 0)


def test_bootstrap_resamples_images_not_pixels() -> None:
    """One bad image of two must affect the interval, independent of the number of pixels."""
    good, bad = Confusion(tp=10**6), Confusion(fn=10**6)
    interval = drop_interval([good, good], [good, bad], resamples=200)
    assert interval is not None and (interval.low, interval.high) == (0, 100)


def test_a_resample_without_change_does_not_count() -> None:
    """One of two images has a change, so a quarter of all resamples has no F1."""
    reference, engine = [Confusion(tp=4), Confusion(tn=4)], [Confusion(tp=2, fn=2), Confusion(tn=4)]
    interval = drop_interval(reference, engine, resamples=200)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((100 / 3, 100 / 3))


@pytest.mark.parametrize("images", [[], [Confusion(tp=5, fp=1)], [Confusion(tn=5), Confusion(tn=6)]])
def test_one_image_or_no_change_gives_no_interval(images: list[Confusion]) -> None:
    assert drop_interval(images, images) is None


def test_thousands_of_images_fit_in_memory() -> None:
    images = random_images(20_000, seed=0)
    interval = drop_interval(images, worse(images), resamples=20)
    assert interval is not None and interval.high - interval.low < 1


# The ratio


def ratio_of(min_f1_ratio: float) -> F1Limit:
    return F1Limit(min_f1_ratio=min_f1_ratio)


@pytest.mark.parametrize(("required", "passed"), [(0.5, True), (2 / 3, True), (0.6667, False), (1.0, False)])
def test_a_ratio_passes_down_to_its_limit(required: float, passed: bool) -> None:
    verdict = decide(THREE_QUARTERS, HALF, 0.9, ratio_of(required))
    assert (verdict.passed, verdict.rule, verdict.limit) == (passed, "F1 ratio", required)
    assert verdict.value == pytest.approx(2 / 3)
    assert ("at least" in verdict.reason) is passed and "0.66666" in verdict.reason


def test_a_better_engine_passes_a_ratio_of_one() -> None:
    assert decide(HALF, THREE_QUARTERS, 0.9, ratio_of(1.0)).passed
    assert decide(HALF, HALF, 1.0, ratio_of(1.0)).passed


def test_ratio_equal_to_its_limit_passes_despite_rounding() -> None:
    reference, engine = Confusion(tp=80, fp=20, fn=20), Confusion(tp=72, fp=28, fn=28)
    assert 0.72 / 0.8 < 0.9  # the rounding error of floats
    assert decide(reference, engine, 1.0, ratio_of(0.9)).passed


def test_a_ratio_below_its_limit_is_not_shown_as_equal() -> None:
    reference, engine = Confusion(tp=10**7), Confusion(tp=10**7 - 19_990, fn=19_990)  # F1 0.9989995
    verdict = decide(reference, engine, 1.0, ratio_of(0.999))
    assert not verdict.passed and "F1 ratio 0.99899, less than the required 0.999" in verdict.reason


@settings(deadline=None)
@given(*[COUNTS] * 6)
def test_the_ratio_is_the_quotient_of_two_f1(a: int, b: int, c: int, d: int, e: int, f: int) -> None:
    ratio = f1_ratio(Confusion(a, b, c, 0), Confusion(d, e, f, 0))
    if not a or not d + f:
        assert ratio is None
    else:
        assert ratio == pytest.approx(2 * d / (2 * d + e + f) * (2 * a + b + c) / (2 * a), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("rule", ["point", "upper"])
def test_every_engine_passes_a_ratio_if_the_float_model_finds_no_change(rule: GateRule) -> None:
    reference = Confusion(fn=100, tn=900)
    for engine in (reference, Confusion(tp=50, fn=50, tn=900), Confusion(fp=900, fn=100)):
        verdict = decide(reference, engine, 0.9, ratio_of(0.999), rule=rule)
        assert verdict.passed and "the float model's F1 is 0, so the ratio is undefined" in verdict.reason
    assert f1_ratio(reference, reference) is None


@pytest.mark.parametrize(
    ("false_alarms", "agreement", "passed"), [(0, 1.0, True), (10, 0.999, True), (11, 0.9989, False), (0, 0.9, False)]
)
def test_a_ratio_allows_its_points_of_disagreement_if_no_label_holds_a_change(
    false_alarms: int, agreement: float, passed: bool
) -> None:
    reference, engine = Confusion(tn=10_000), Confusion(fp=false_alarms, tn=10_000 - false_alarms)
    verdict = decide(reference, engine, agreement, ratio_of(0.999))
    assert (verdict.passed, verdict.limit, verdict.rule) == (passed, 0.1, "false alarms and agreement")


@pytest.mark.parametrize(("low", "passed"), [(0.65, True), (0.6, True), (0.5999, False)])
def test_upper_rule_compares_the_lower_end_of_the_ratio(low: float, passed: bool) -> None:
    intervals = Intervals(Interval(0, 100, 4), Interval(low, 0.7, 4))
    verdict = decide(THREE_QUARTERS, HALF, 0.9, ratio_of(0.6), rule="upper", intervals=intervals)
    assert (verdict.passed, verdict.value, verdict.limit) == (passed, low, 0.6)
    assert "0.66666" in verdict.reason and "over 4 images" in verdict.reason
    assert decide(THREE_QUARTERS, HALF, 0.9, ratio_of(0.6), intervals=intervals).passed
    alone = decide(THREE_QUARTERS, HALF, 0.9, ratio_of(0.6), rule="upper")
    assert not alone.passed and "two source images" in alone.reason


def test_both_intervals_come_from_the_same_resamples() -> None:
    reference = random_images(7, seed=1)
    engine = worse(reference)
    rng = np.random.default_rng(3)
    ratios = []
    for _ in range(400):
        drawn = rng.integers(0, 7, 7)
        ratios.append(f1_ratio(*(Confusion.total([side[i] for i in drawn]) for side in (reference, engine))))
    found = bootstrap(reference, engine, seed=3, resamples=400)
    assert found is not None and found.ratio is not None
    assert (found.ratio.low, found.ratio.high) == pytest.approx(np.percentile(ratios, (2.5, 97.5)), abs=1e-9)
    assert found.ratio.sources == found.drop.sources == 7


def test_a_resample_in_which_the_float_model_finds_nothing_has_no_ratio() -> None:
    reference, engine = [Confusion(tp=4), Confusion(fn=4)], [Confusion(tp=2, fn=2), Confusion(fn=4)]
    found = bootstrap(reference, engine, resamples=200)
    assert found is not None and found.ratio is not None
    assert 0.5 <= found.ratio.low <= found.ratio.high < 0.67
    nothing = bootstrap([Confusion(fn=4)] * 2, engine, resamples=20)
    assert nothing is not None and nothing.ratio is None


def test_limit_in_points_depends_on_the_float_f1() -> None:
    assert (ratio_of(0.999).points(0.9), ratio_of(0.999).points(None), ratio_of(0.999).points(0.0)) == (0.09, 0.1, 0.0)
    assert points(-1.0).points(0.9) == points(-1.0).points(None) == -1.0


def test_limit_is_a_drop_or_a_ratio() -> None:
    with pytest.raises(ValueError, match="either"):
        F1Limit()
    with pytest.raises(ValueError, match="either"):
        F1Limit(max_f1_drop=1.0, min_f1_ratio=0.999)
    assert requested_limit(None, None) is None
    assert requested_limit(0.0, None) == points(0.0) and requested_limit(None, 0.99) == ratio_of(0.99)


@pytest.mark.parametrize(
    ("drop", "ratio", "message"),
    [
        (0.5, 0.999, "--max-f1-drop 0.5 and --min-f1-ratio 0.999 were both given"),
        (None, 0.0, "--min-f1-ratio is 0; it must be more than 0 and at most 1"),
        (None, 1.1, "--min-f1-ratio is 1.1"),
        (None, float("nan"), "--min-f1-ratio is nan"),
        (float("nan"), None, "--max-f1-drop is nan"),
    ],
)
def test_impossible_limits_are_refused(drop: float | None, ratio: float | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        requested_limit(drop, ratio)
