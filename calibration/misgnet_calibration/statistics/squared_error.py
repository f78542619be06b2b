"""Chooses the range whose quantized values have the least mean squared error on the observed values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misgnet_calibration.statistics.observers import BINS, Histogram, Range

_FRACTIONS = np.geomspace(0.02, 1.0, 120)  # of the extremes
_SWEEPS = 2


def least_squared_error(histogram: Histogram, symmetric: bool) -> Range:
    """Returns the range that minimises :func:`squared_error` among fractions of the extremes.

    The two ends of an asymmetric range are searched alternately, twice. Raises InputError if nothing was observed.
    """
    whole = histogram.percentile(1.0)
    if whole.magnitude == 0:
        return whole
    values, counts = occupied(histogram)
    if symmetric:
        return _best(values, counts, [_clipped(whole, whole.magnitude * f) for f in _FRACTIONS], symmetric)
    found = whole
    for _ in range(_SWEEPS):
        found = _best(values, counts, [Range(found.low, whole.high * f) for f in _FRACTIONS], symmetric)
        found = _best(values, counts, [Range(whole.low * f, found.high) for f in _FRACTIONS], symmetric)
    return found


def squared_error(values: NDArray[np.float64], counts: NDArray[np.float64], found: Range, symmetric: bool) -> float:
    """Returns the mean squared error of INT8 over the range ``found`` (255 steps, or 127 on either side of 0).

    Each of ``values`` represents ``counts`` observed values. A value beyond the range is clipped. Within the range the
    error is that of rounding to the nearest quantized value. If a value's bin is wider than a step, its position
    within the step is unknown, and the error of an even spread is taken: a twelfth of the squared step.
    """
    step = found.magnitude / 127 if symmetric else (found.high - found.low) / 255
    if step <= 0:
        return float((counts * values**2).sum() / counts.sum())
    low, high = (-found.magnitude, found.magnitude) if symmetric else (found.low, found.high)
    kept = np.clip(values, low, high)
    rounded = np.where(np.abs(values) / 128 < step / 2, (kept - np.rint(kept / step) * step) ** 2, step**2 / 12)
    return float((counts * ((values - kept) ** 2 + np.where(values == kept, rounded, 0.0))).sum() / counts.sum())


def occupied(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the middles of the bins that hold values, and the count of each."""
    codes = np.flatnonzero(histogram.counts).astype(np.uint32)
    inner, outer = ((codes << 16 | bits).view(np.float32).astype(np.float64) for bits in (0, 0xFFFF))
    middles = np.where(codes % (BINS // 2) == 0, 0.0, (inner + outer) / 2)  # the bin at 0 holds mostly zeros
    return np.clip(middles, histogram.low, histogram.high), histogram.counts[codes].astype(np.float64)


def _clipped(whole: Range, magnitude: float) -> Range:
    return Range(max(whole.low, -magnitude), min(whole.high, magnitude))


def _best(values: NDArray[np.float64], counts: NDArray[np.float64], ranges: list[Range], symmetric: bool) -> Range:
    return min(ranges, key=lambda found: squared_error(values, counts, found, symmetric))
