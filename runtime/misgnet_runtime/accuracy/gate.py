"""Decides whether an engine passes the accuracy gate: pure functions from pixel counts to a verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.bundle.manifest import GateRule
from misgnet_runtime.formatting import truncated
from misgnet_runtime.storage.schema import Struct

RESAMPLES = 10_000
LEAST_AGREEMENT = 0.9  # share of pixels with the same mask, below which a graph is broken, not just lossy


class Interval(Struct, frozen=True):
    """95 % bootstrap interval of an F1 drop, in points (hundredths of F1), or of an F1 ratio, as a fraction."""

    # Lower end.
    low: float
    # Upper end.
    high: float
    # Number of source images that were resampled.
    sources: int


@dataclass(frozen=True)
class Intervals:
    """The intervals of one engine, from the same resamples."""

    drop: Interval
    # None if the ratio is undefined because the float model's F1 is 0.
    ratio: Interval | None


class Verdict(Struct, frozen=True):
    """The gate's decision about an engine."""

    # Whether the engine passes the gate.
    passed: bool
    # The quantity that was compared with the limit.
    rule: str
    # Its measured value: a fraction if ``rule`` is the F1 ratio or an end of its interval, otherwise points.
    value: float
    # The lowest allowed ratio, or the highest allowed number of points.
    limit: float
    # The decision in words.
    reason: str


def f1_drop(reference: Confusion, engine: Confusion) -> float | None:
    """Returns F1 of the reference minus F1 of the engine, in points; None if the labels hold no change.

    Rounded to 9 decimals, so that a drop equal to its limit does not exceed it by a rounding error.
    """
    if reference.f1 is None or engine.f1 is None:
        return None
    return round(100 * (reference.f1 - engine.f1), 9)


def f1_ratio(reference: Confusion, engine: Confusion) -> float | None:
    """Returns F1 of the engine as a share of the reference's; None if the labels hold no change or the latter is 0.

    Rounded to 11 decimals, so that a ratio equal to its limit is not below it by a rounding error.
    """
    if not reference.f1 or engine.f1 is None:
        return None
    return round(engine.f1 / reference.f1, 11)


def decide(
    reference: Confusion,
    engine: Confusion,
    agreement: float,
    limit: F1Limit,
    *,
    rule: GateRule = "point",
    intervals: Intervals | None = None,
    labelled: bool = True,
) -> Verdict:
    """Evaluates ``engine`` against ``reference`` on the same pixels.

    If the labels hold no change, F1 is undefined. Then the additional false alarms (points of the unchanged pixels) and
    the disagreeing pixels (points) must both stay within the points that ``limit`` allows for an F1 of 1. If they hold
    changes and the reference finds none of them, its F1 is 0 and no ratio is defined; every engine keeps that F1, and
    fails only if its masks agree in fewer than 90 % of the pixels.

    Args:
        reference: Counts of the reference model.
        engine: Counts of the engine.
        agreement: Share of pixels with equal masks, 0 to 1.
        limit: The allowed drop, or the required ratio.
        rule: "point" compares the measured drop or ratio. "upper" compares the worse end of its interval, a plausible
            value on other images of the same kind; it fails if there is no interval.
        intervals: Bootstrap intervals of drop and ratio.
        labelled: Whether there are labels; without, all pixels are counted as unchanged ones.
    """
    drop, ratio = f1_drop(reference, engine), f1_ratio(reference, engine)
    if drop is None:
        return _no_change_verdict(reference, engine, agreement, limit.points(None), labelled)
    if reference.f1 == 0 and agreement < LEAST_AGREEMENT:
        return _broken_verdict(agreement)
    if limit.min_f1_ratio is not None:
        return _by_ratio(drop, ratio, limit.min_f1_ratio, rule, intervals.ratio if intervals else None)
    return _by_drop(drop, limit.points(reference.f1), rule, intervals.drop if intervals else None)


def _by_drop(drop: float, allowed: float, rule: GateRule, interval: Interval | None) -> Verdict:
    return _drop_verdict(drop, allowed) if rule == "point" else _upper_drop_verdict(drop, allowed, interval)


def _by_ratio(drop: float, ratio: float | None, required: float, rule: GateRule, interval: Interval | None) -> Verdict:
    if ratio is None:
        reason = "the float model's F1 is 0, so the ratio is undefined, and no engine can have a lower F1"
        return Verdict(True, "float model with an F1 of 0", drop, 0.0, reason)
    return _ratio_verdict(ratio, required) if rule == "point" else _lower_ratio_verdict(ratio, required, interval)


def _broken_verdict(agreement: float) -> Verdict:
    allowed, differing = round(100 * (1 - LEAST_AGREEMENT), 9), round(100 * (1 - agreement), 9)
    reason = f"{differing:.3f} points of the pixels differ, {allowed:g} allowed: the engine is broken, not just lossy"
    return Verdict(False, "agreement", differing, allowed, reason)


def _no_change_verdict(
    reference: Confusion, engine: Confusion, agreement: float, allowed: float, labelled: bool
) -> Verdict:
    alarms = round(100 * ((engine.false_alarms or 0.0) - (reference.false_alarms or 0.0)), 9)
    disagreeing = round(100 * (1 - agreement), 9)
    value = max(alarms, disagreeing)
    passed = value <= allowed
    if not labelled:
        reason = f"F1 was not measured (no labels): {disagreeing:.3f} points of disagreeing pixels, {allowed:g} allowed"
        return Verdict(disagreeing <= allowed, "agreement", disagreeing, allowed, reason)
    reason = (
        f"F1 is undefined because no label holds a change: {alarms:+.3f} points of false alarms and "
        f"{disagreeing:.3f} points of disagreeing pixels, {allowed:g} allowed"
    )
    return Verdict(passed, "false alarms and agreement", value, allowed, reason)


def _drop_verdict(drop: float, allowed: float) -> Verdict:
    passed = drop <= allowed
    reason = f"F1 drop {drop:+.3f} points, {'within' if passed else 'more than'} the allowed {allowed:g}"
    return Verdict(passed, "F1 drop", drop, allowed, reason)


def _ratio_verdict(ratio: float, required: float) -> Verdict:
    passed = ratio >= required
    reason = f"F1 ratio {truncated(ratio, 5)}, {'at least' if passed else 'less than'} the required {required:g}"
    return Verdict(passed, "F1 ratio", ratio, required, reason)


def _upper_drop_verdict(drop: float, allowed: float, interval: Interval | None) -> Verdict:
    name = "upper end of the F1 drop's 95 % interval"
    if interval is None:
        return Verdict(False, name, drop, allowed, f"the F1 drop {_NO_INTERVAL}")
    passed = interval.high <= allowed
    reason = (
        f"F1 drop {drop:+.3f} points, and {interval.high:+.3f} at the upper end of the interval over "
        f"{interval.sources} images, {'within' if passed else 'more than'} the allowed {allowed:g}"
    )
    return Verdict(passed, name, round(interval.high, 9), allowed, reason)


def _lower_ratio_verdict(ratio: float, required: float, interval: Interval | None) -> Verdict:
    name = "lower end of the F1 ratio's 95 % interval"
    if interval is None:
        return Verdict(False, name, ratio, required, f"the F1 ratio {_NO_INTERVAL}")
    low = round(interval.low, 11)
    passed = low >= required
    reason = (
        f"F1 ratio {truncated(ratio, 5)}, and {truncated(low, 5)} at the lower end of the interval over "
        f"{interval.sources} images, {'at least' if passed else 'less than'} the required {required:g}"
    )
    return Verdict(passed, name, low, required, reason)


_NO_INTERVAL = "has no interval, which needs at least two source images; add images, or use --gate point"


def bootstrap(
    reference: list[Confusion], engine: list[Confusion], seed: int = 0, resamples: int = RESAMPLES
) -> Intervals | None:
    """Returns the paired percentile bootstrap of the F1 drop and the F1 ratio over source images.

    Source: Efron and Tibshirani (1993), chapter 13. Tiles of one image are not independent, so images are resampled.
    Both lists hold one matrix per image, in the same order. Returns None for fewer than two images, or if F1 is
    undefined.
    """
    images, total = len(reference), Confusion.total(reference)
    if images < 2 or total.f1 is None:
        return None
    counts = np.stack([_counts(reference), _counts(engine)], 1)  # (images, 2, 3)
    rng = np.random.default_rng(seed)
    # One resample at a time: thousands of images times thousands of resamples would not fit in memory.
    sums = np.array([counts[rng.integers(0, images, images)].sum(0) for _ in range(resamples)])
    before, after = _f1(sums).T  # (resamples,) each
    drop = _interval(100 * (before - after), images)
    # Resamples in which the reference finds no change have no ratio and do not count.
    ratio = _interval(after / np.where(before > 0, before, np.nan), images) if total.tp else None
    return Intervals(drop, ratio)


def _interval(values: NDArray[np.float64], images: int) -> Interval:
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return Interval(float(low), float(high), images)


def _counts(parts: list[Confusion]) -> NDArray[np.float64]:
    """Returns tp, fp and fn of each part, (parts, 3)."""
    return np.array([(c.tp, c.fp, c.fn) for c in parts], np.float64)


def _f1(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns F1 of (..., 3) counts; NaN for a resample without change."""
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan))
