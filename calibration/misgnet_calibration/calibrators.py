"""Which range of a tensor's values to keep: the seam for further methods.

A calibrator is a name and a function of what an observer counted. One is added by adding it here; the build
tries CANDIDATES on validation tiles and takes the one whose graph agrees best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from misgnet_calibration.observers import Histogram, Range


@dataclass(frozen=True)
class Calibrator:
    """A rule from observed values to the range that INT8 is stretched over."""

    name: str
    choose: Callable[[Histogram], Range]


def percentile(percent: float) -> Calibrator:
    """Keeps the central ``percent`` of the values; 100 keeps the extremes."""
    return Calibrator(f"percentile {percent:g}", lambda histogram: histogram.percentile(percent / 100))


DEFAULT = percentile(99.999)
CANDIDATES = (percentile(99.99), DEFAULT, percentile(100))
