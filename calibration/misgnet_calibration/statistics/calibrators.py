"""Which range of a tensor's values to keep: the seam for further methods.

A calibrator is a name and a function of what an observer counted. One is added by adding it here; the build
tries CANDIDATES on validation tiles and takes the one whose graph agrees best.
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
    """A rule from observed values to the range that INT8 is stretched over.

    ``choose`` takes what was observed, and whether the type is symmetric: INT8 around 0, or UINT8 from low to high.
    """

    name: str
    choose: Callable[[Histogram, bool], Range]

    def of(self, tensor: str) -> Calibrator:  # noqa: ARG002
        """The rule for one tensor: this one for all of them (see ``per_tensor`` for the other kind)."""
        return self

    def __str__(self) -> str:
        return self.name


class Calibrating(Protocol):
    """A :class:`Calibrator` for all tensors, or one for each."""

    @property
    def name(self) -> str: ...

    def of(self, tensor: str) -> Calibrator: ...


def percentile(percent: float) -> Calibrator:
    """Keeps the central ``percent`` of the values; 100 keeps the extremes."""
    return Calibrator(f"percentile {percent:g}", lambda histogram, _: histogram.percentile(percent / 100))


MAX = Calibrator("max", lambda histogram, _: histogram.percentile(1.0))
ENTROPY = Calibrator("entropy", lambda histogram, _: least_divergence(histogram))
MSE = Calibrator("mse", least_squared_error)
DEFAULT = percentile(99.999)
AUTO = "auto"  # the best of all on tiles that decide
PER_TENSOR = "per-tensor"  # see ``per_tensor``
CANDIDATES = (percentile(99.99), DEFAULT, MAX, MSE, ENTROPY)


def named(name: str) -> Calibrator | None:
    """The calibrator of a name such as "max", "mse", "entropy" or "percentile 99.9"; None where there is none."""
    known = {calibrator.name: calibrator for calibrator in (MAX, ENTROPY, MSE)}
    kind, _, number = name.partition(" ")
    if kind != "percentile":
        return known.get(name)
    try:
        percent = float(number)
    except ValueError:
        return None
    return percentile(percent) if 0 < percent <= 100 else None
