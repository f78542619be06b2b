"""Calibrators: methods that choose the range of a tensor's values to quantize.

A calibrator is a name and a function of an observer's histogram. To add one, define it here and add it to CANDIDATES:
the build tries these on validation tiles and takes the one whose graph agrees best with the float graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from misgnet_calibration.statistics.entropy import least_divergence
from misgnet_calibration.statistics.observers import Histogram, Range
from misgnet_calibration.statistics.squared_error import least_squared_error


@dataclass(frozen=True)
class Calibrator:
    """A rule that maps a histogram of values to the range covered by the quantized type."""

    name: str
    choose: Callable[[Histogram, bool], Range]  # second argument: True for INT8 around 0, False for UINT8, low to high

    def of(self, tensor: str) -> Calibrator:  # noqa: ARG002
        """Returns the rule for one tensor: the same for all (see ``per_tensor`` for the other kind)."""
        return self

    def __str__(self) -> str:
        return self.name


class Calibrating(Protocol):
    """One :class:`Calibrator` for all tensors, or one per tensor."""

    @property
    def name(self) -> str: ...

    def of(self, tensor: str) -> Calibrator: ...


def percentile(percent: float) -> Calibrator:
    """Returns a calibrator that keeps the central ``percent`` of the values; 100 keeps the extremes."""
    return Calibrator(f"percentile {percent:g}", lambda histogram, _: histogram.percentile(percent / 100))


MAX = Calibrator("max", lambda histogram, _: histogram.percentile(1.0))
ENTROPY = Calibrator("entropy", lambda histogram, _: least_divergence(histogram))
MSE = Calibrator("mse", least_squared_error)
DEFAULT = percentile(99.999)
AUTO = "auto"  # the best of CANDIDATES on validation tiles
PER_TENSOR = "per-tensor"  # see ``per_tensor``
CANDIDATES = (percentile(99.99), DEFAULT, MAX, MSE, ENTROPY)


def named(name: str) -> Calibrator | None:
    """Returns the calibrator named "max", "mse", "entropy" or, for example, "percentile 99.9"; None if unknown."""
    known = {calibrator.name: calibrator for calibrator in (MAX, ENTROPY, MSE)}
    kind, _, number = name.partition(" ")
    if kind != "percentile":
        return known.get(name)
    try:
        percent = float(number)
    except ValueError:
        return None
    return percentile(percent) if 0 < percent <= 100 else None
