"""Entropy calibration: chooses the range whose quantized values lose the least information.

Source: Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017. Among thresholds on the magnitude, it
takes the one with the least Kullback-Leibler divergence between the clipped distribution and its representation by
128 quantized values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misgnet_calibration.statistics.observers import BINS, Histogram, Range

_FINE = 2048  # bins of equal width from 0 to the largest magnitude
_QUANTIZED = 128  # quantized magnitudes
_STRIDE = 16


def least_divergence(histogram: Histogram) -> Range:
    """Returns the extremes, clipped at the magnitude with the least divergence.

    Raises InputError if nothing was observed.
    """
    whole = histogram.percentile(1.0)
    if whole.magnitude == 0:
        return whole
    counts = even_bins(histogram, whole.magnitude)
    kept = range(_QUANTIZED, _FINE + 1, _STRIDE)
    best = min(kept, key=lambda bins: divergence(counts, bins))
    threshold = whole.magnitude * best / _FINE
    return Range(max(whole.low, -threshold), min(whole.high, threshold))


def even_bins(histogram: Histogram, largest: float) -> NDArray[np.float64]:
    """Returns counts of the magnitudes in ``_FINE`` bins of equal width up to ``largest``.

    The values of each bin of the histogram are assumed to be evenly spread.
    """
    half = BINS // 2
    counts = histogram.counts[:half] + histogram.counts[half:]
    last = int(np.flatnonzero(counts)[-1]) + 1
    upper = (np.arange(1, last, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    at = np.concatenate(([0.0], np.minimum(upper, largest), [largest]))
    cumulated = np.concatenate(([0], np.cumsum(counts[:last]))).astype(np.float64)
    found = np.diff(np.interp(np.linspace(0, largest, _FINE + 1), at, cumulated))
    found[0] -= counts[0]  # zeros are represented exactly for any range
    return np.maximum(found, 0.0)


def divergence(counts: NDArray[np.float64], kept: int) -> float:
    """Returns the Kullback-Leibler divergence of the first ``kept`` bins from their 128 quantized values.

    Outliers are added to the last of these bins.
    """
    inside = counts[:kept]
    clipped = inside.copy()
    clipped[-1] += counts[kept:].sum()
    total, inner = clipped.sum(), inside.sum()
    if not inner:
        return float("inf")
    index = np.arange(kept) * _QUANTIZED // kept  # of the quantized value that represents each bin
    filled = inside > 0
    sums = np.bincount(index, inside, _QUANTIZED)
    shares = np.bincount(index, filled, _QUANTIZED)
    q = np.where(filled, sums[index] / np.maximum(shares[index], 1), 0.0) / inner
    p = clipped / total
    occupied = p > 0
    with np.errstate(divide="ignore"):  # q is 0 for a bin that only outliers fill
        return float((p[occupied] * np.log(p[occupied] / np.maximum(q[occupied], 1e-12))).sum())
