"""Observes ranges of activations over a stream of tiles, in constant memory.

An observer receives each tensor of each tile once. It keeps the exact extremes, and counts a sample of the values
by the upper 16 bits of their float32 (bfloat16: sign, exponent and 7 bits of mantissa). So every bin is narrow, at
most 1/128 of its value, and a single huge value does not reduce the resolution of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError

BINS = 1 << 16
SAMPLE = 1 << 16  # maximum number of values per tensor and tile that enter the histogram


@dataclass(frozen=True)
class Range:
    """Interval of real numbers covered by the quantized type; ``low`` <= 0 <= ``high``."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        return max(-self.low, self.high)


class Observer(Protocol):
    """Receives the values of one tensor, tile after tile."""

    def observe(self, values: NDArray[np.float32]) -> None: ...


class Histogram:
    """Exact extremes and a histogram of the values of one tensor."""

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)  # by the upper 16 bits of the float32 values

    def observe(self, values: NDArray[np.float32]) -> None:
        """Adds values of any shape. Raises ValueError for NaN or Inf."""
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low + high):
            raise ValueError("NaN or Inf among the activations")
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = np.asarray(values, np.float32).reshape(-1)
        codes = np.ascontiguousarray(flat[:: sampling_step(flat.size)]).view(np.uint32) >> 16
        self.counts += np.bincount(codes, minlength=BINS)

    def percentile(self, share: float) -> Range:
        """Returns the range that excludes (1 - share) / 2 of the values on each side; the extremes for ``share`` 1.

        Zero is always included. Raises InputError if nothing was observed.
        """
        if not self.counts.any():
            raise InputError("no activation was observed; calibrate on some tiles first")
        if share >= 1:
            return Range(self.low, self.high)
        below, above = (self._outermost(share, negative=negative) for negative in (True, False))
        return Range(-min(below, -self.low), min(above, self.high))

    def _outermost(self, share: float, negative: bool) -> float:
        """Returns the magnitude on one side of 0 that at most (1 - share) / 2 of all values exceed.

        It is the outer edge of a bin, so that the bin's own values are included.
        """
        half = BINS // 2
        counts = self.counts[half:] if negative else self.counts[:half]
        beyond = counts[::-1].cumsum()[::-1]  # values in this bin or farther out
        kept = int((beyond > (1 - share) / 2 * self.counts.sum()).sum())  # bins up to the outermost one kept
        return float(np.array(kept << 16, np.uint32).view(np.float32)) if kept else 0.0


def sampling_step(size: int) -> int:
    """Returns the step with which at most SAMPLE of ``size`` values are taken.

    The step and ``size`` have no common divisor, so that all channels are sampled equally often; a power of two would
    sample only a few channels.
    """
    step = max(1, -(-size // SAMPLE))
    while gcd(step, size) > 1:
        step += 1
    return step
