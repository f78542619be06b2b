"""Decides whether an engine passes the accuracy gate: pure functions from pixel counts to a verdict."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.bundle.manifest import GateRule
from misgnet_runtime.storage.schema import Struct

RESAMPLES = 10_000


class Interval(Struct, frozen=True):
    """95 % bootstrap interval of an F1 drop."""

    # Lower end, in points (hundredths of F1).
    low: float
    # Upper end, in points.
    high: float
    # Number of source images that were resampled.
    sources: int


class Verdict(Struct, frozen=True):
    """The gate's decision about an engine."""

    # Whether the engine passes the gate.
    passed: bool
    # The quantity that was compared with the limit.
    rule: str
    # Its measured value, in points.
    value: float
    # The highest allowed value, in points.
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


def decide(
    reference: Confusion,
    engine: Confusion,
    agreement: float,
    max_f1_drop: float,
    *,
    rule: GateRule = "point",
    interval: Interval | None = None,
) -> Verdict:
    """Evaluates ``engine`` against ``reference`` on the same pixels.

    If the labels hold no change, F1 is undefined. Then the additional false alarms (points of the unchanged pixels) and
    the disagreeing pixels (points) must both stay within ``max_f1_drop``.

    Args:
        reference: Counts of the reference model.
        engine: Counts of the engine.
        agreement: Share of pixels with equal masks, 0 to 1.
        max_f1_drop: The allowed drop in points; may be negative.
        rule: "point" compares the measured drop. "upper" compares the upper end of ``interval``, a plausible drop on
            other images of the same kind; it fails if there is no interval.
        interval: Bootstrap interval of the drop.
    """
    drop = f1_drop(reference, engine)
    if drop is not None:
        return _drop_verdict(drop, max_f1_drop) if rule == "point" else _upper_verdict(drop, max_f1_drop, interval)
    alarms = round(100 * ((engine.false_alarms or 0.0) - (reference.false_alarms or 0.0)), 9)
    disagreeing = round(100 * (1 - agreement), 9)
    value = max(alarms, disagreeing)
    passed = value <= max_f1_drop
    reason = (
        f"F1 is undefined because no label holds a change: {alarms:+.3f} points of false alarms and "
        f"{disagreeing:.3f} points of disagreeing pixels, {max_f1_drop:g} allowed"
    )
    return Verdict(passed, "false alarms and agreement", value, max_f1_drop, reason)


def _drop_verdict(drop: float, allowed: float) -> Verdict:
    passed = drop <= allowed
    reason = f"F1 drop {drop:+.3f} points, {'within' if passed else 'more than'} the allowed {allowed:g}"
    return Verdict(passed, "F1 drop", drop, allowed, reason)


def _upper_verdict(drop: float, allowed: float, interval: Interval | None) -> Verdict:
    name = "upper end of the F1 drop's 95 % interval"
    if interval is None:
        reason = "the F1 drop has no interval, which needs at least two source images; add images, or use --gate point"
        return Verdict(False, name, drop, allowed, reason)
    passed = interval.high <= allowed
    reason = (
        f"F1 drop {drop:+.3f} points, and {interval.high:+.3f} at the upper end of the interval over "
        f"{interval.sources} images, {'within' if passed else 'more than'} the allowed {allowed:g}"
    )
    return Verdict(passed, name, round(interval.high, 9), allowed, reason)


def bootstrap_drop(
    reference: list[Confusion], engine: list[Confusion], seed: int = 0, resamples: int = RESAMPLES
) -> Interval | None:
    """Returns the paired percentile bootstrap of the F1 drop over source images.

    Source: Efron and Tibshirani (1993), chapter 13. Tiles of one image are not independent, so images are resampled.
    Both lists hold one matrix per image, in the same order. Returns None for fewer than two images, or if F1 is
    undefined.
    """
    images = len(reference)
    if images < 2 or Confusion.total(reference).f1 is None:
        return None
    counts = np.stack([_counts(reference), _counts(engine)], 1)  # (images, 2, 3)
    rng = np.random.default_rng(seed)
    # One resample at a time: thousands of images times thousands of resamples would not fit in memory.
    sums = np.array([counts[rng.integers(0, images, images)].sum(0) for _ in range(resamples)])
    scores = 100 * _f1(sums)
    low, high = np.nanpercentile(scores[:, 0] - scores[:, 1], (2.5, 97.5))
    return Interval(float(low), float(high), images)


def _counts(parts: list[Confusion]) -> NDArray[np.float64]:
    """Returns tp, fp and fn of each part, (parts, 3)."""
    return np.array([(c.tp, c.fp, c.fn) for c in parts], np.float64)


def _f1(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns F1 of (..., 3) counts; NaN for a resample without change."""
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan))
