"""Ranges of activations from a stream of tiles, in constant memory.

An observer sees each tensor of each tile once. It keeps the exact extremes and a histogram of a strided
sample of the values; when a value lies outside the histogram, neighbouring bins are joined and the range
doubles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BINS = 4096
SAMPLE = 1 << 16  # values a tensor and tile that enter the histogram


@dataclass(frozen=True)
class Range:
    """The real numbers that the quantized type is stretched over; ``low`` <= 0 <= ``high``."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        return max(-self.low, self.high)


class Observer(Protocol):
    """Sees the values of one tensor and says which range of them to keep."""

    def observe(self, values: NDArray[np.float32]) -> None: ...

    def range(self) -> Range: ...


class Histogram:
    """Exact extremes, and counts in ``BINS`` equal bins over [-limit, limit)."""

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.limit = 2.0**-10
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)

    def observe(self, values: NDArray[np.float32]) -> None:
        """Add values of any shape. Raises ValueError for NaN or Inf."""
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low + high):
            raise ValueError("NaN or Inf among the activations")
        self.low, self.high = min(self.low, low), max(self.high, high)
        while self.limit <= max(-low, high):
            self._double()
        flat = values.reshape(-1)
        sample = flat[:: max(1, flat.size // SAMPLE)]
        bins = ((sample + self.limit) * (BINS / (2 * self.limit))).astype(np.int32)
        self.counts += np.bincount(bins.clip(0, BINS - 1), minlength=BINS)

    def _double(self) -> None:
        quarter = BINS // 4
        joined = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[quarter : quarter + joined.size] = joined
        self.limit *= 2

    def percentile(self, share: float) -> Range:
        """The range that leaves (1 - share) / 2 of the values out on each side; ``share`` 1 gives the extremes."""
        if share >= 1:
            return Range(self.low, self.high)
        total = np.cumsum(self.counts)
        edges = np.linspace(-self.limit, self.limit, BINS + 1)
        cut = (1 - share) / 2 * total[-1]
        first = int(np.searchsorted(total, cut, side="right"))
        last = int(np.searchsorted(total, total[-1] - cut, side="left"))
        # Within the extremes: a bin may be wider than the values in it.
        return Range(max(min(edges[first], 0.0), self.low), min(max(edges[last + 1], 0.0), self.high))


class PercentileObserver(Histogram):
    """Keeps the central ``share`` of the values; the default calibrator."""

    def __init__(self, share: float = 0.9999) -> None:
        super().__init__()
        self.share = share

    def range(self) -> Range:
        return self.percentile(self.share)
