"""The range whose INT8 levels keep most of the information of what was observed.

Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017: among thresholds on the magnitude, the
one whose clipped distribution is told best by 128 levels, as the Kullback-Leibler divergence measures it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misgnet_calibration.statistics.observers import BINS, Histogram, Range

_FINE = 2048  # bins of equal width from 0 to the largest magnitude
_LEVELS = 128
_STRIDE = 16


def least_divergence(histogram: Histogram) -> Range:
    """The extremes, clipped at the magnitude of the least divergence. InputError where nothing was observed."""
    whole = histogram.percentile(1.0)
    if whole.magnitude == 0:
        return whole
    counts = even_bins(histogram, whole.magnitude)
    kept = range(_LEVELS, _FINE + 1, _STRIDE)
    best = min(kept, key=lambda bins: divergence(counts, bins))
    threshold = whole.magnitude * best / _FINE
    return Range(max(whole.low, -threshold), min(whole.high, threshold))


def even_bins(histogram: Histogram, largest: float) -> NDArray[np.float64]:
    """Counts of the magnitudes in ``_FINE`` bins of equal width up to ``largest``; each bin's values evenly spread."""
    half = BINS // 2
    counts = histogram.counts[:half] + histogram.counts[half:]
    last = int(np.flatnonzero(counts)[-1]) + 1
    upper = (np.arange(1, last, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    at = np.concatenate(([0.0], np.minimum(upper, largest), [largest]))
    cumulated = np.concatenate(([0], np.cumsum(counts[:last]))).astype(np.float64)
    found = np.diff(np.interp(np.linspace(0, largest, _FINE + 1), at, cumulated))
    found[0] -= counts[0]  # zeros are exact at any range and say nothing about it
    return np.maximum(found, 0.0)


def divergence(counts: NDArray[np.float64], kept: int) -> float:
    """Kullback-Leibler divergence of the first ``kept`` bins, outliers added to the last, from their 128 levels."""
    inside = counts[:kept]
    clipped = inside.copy()
    clipped[-1] += counts[kept:].sum()
    total, inner = clipped.sum(), inside.sum()
    if not inner:
        return float("inf")
    level = np.arange(kept) * _LEVELS // kept
    filled = inside > 0
    sums = np.bincount(level, inside, _LEVELS)
    shares = np.bincount(level, filled, _LEVELS)
    told = np.where(filled, sums[level] / np.maximum(shares[level], 1), 0.0) / inner
    p = clipped / total
    seen = p > 0
    with np.errstate(divide="ignore"):  # a bin that only outliers fill is not told at all
        return float((p[seen] * np.log(p[seen] / np.maximum(told[seen], 1e-12))).sum())
