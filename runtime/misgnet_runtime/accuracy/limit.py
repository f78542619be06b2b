"""Defines the F1 that an engine must keep, as a drop in points or as a ratio to the float model's. Cheap to import."""

from __future__ import annotations

import math
from dataclasses import dataclass

from misgnet_runtime.bundle.manifest import GateRule, Manifest
from misgnet_runtime.errors import UsageError

# 99.9 % of the float model's F1, the stricter of the two accuracy targets of MLPerf Inference.
DEFAULT_MIN_F1_RATIO = 0.999


@dataclass(frozen=True, kw_only=True)
class F1Limit:
    """The limit of the gate. Exactly one of its fields is given; otherwise ValueError is raised."""

    max_f1_drop: float | None = None  # F1 that an engine may lose against the float model, in points; may be negative
    min_f1_ratio: float | None = None  # smallest F1 as a share of the float model's, more than 0 and at most 1

    def __post_init__(self) -> None:
        if (self.max_f1_drop is None) == (self.min_f1_ratio is None):
            raise ValueError("a limit has either max_f1_drop or min_f1_ratio")

    def points(self, reference_f1: float | None) -> float:
        """Returns the allowed drop in points.

        Args:
            reference_f1: F1 of the float model, 0 to 1. None if the labels hold no change; then 1, so that a ratio of
                0.999 allows 0.1 points.
        """
        if self.min_f1_ratio is None:
            return self.max_f1_drop or 0.0
        return round(100 * (1 - self.min_f1_ratio) * (1.0 if reference_f1 is None else reference_f1), 9)

    def describe(self, gate: GateRule) -> str:
        """Returns the requirement in words: "F1 at least 0.999 of the float model's"."""
        worse = ", at the worse end of its 95 % interval" if gate == "upper" else ""
        if self.min_f1_ratio is None:
            return f"F1 at most {self.max_f1_drop:g} points below the float model's{worse}"
        return f"F1 at least {self.min_f1_ratio:g} of the float model's{worse}"


def limit_of(manifest: Manifest) -> F1Limit:
    """Returns the limit that a bundle was built with."""
    return F1Limit(max_f1_drop=manifest.max_f1_drop, min_f1_ratio=manifest.min_f1_ratio)


def requested_limit(max_f1_drop: float | None, min_f1_ratio: float | None) -> F1Limit | None:
    """Returns the limit that the options ``--max-f1-drop`` and ``--min-f1-ratio`` ask for; None if neither was given.

    Raises:
        UsageError: Both were given, or a value is out of range.
    """
    if max_f1_drop is not None and min_f1_ratio is not None:
        raise UsageError(
            f"--max-f1-drop {max_f1_drop:g} and --min-f1-ratio {min_f1_ratio:g} were both given; give the one that "
            "the gate is to use"
        )
    if max_f1_drop is not None and not math.isfinite(max_f1_drop):
        raise UsageError(f"--max-f1-drop is {max_f1_drop}; expected a finite number of points")
    if min_f1_ratio is not None and not 0 < min_f1_ratio <= 1:
        raise UsageError(f"--min-f1-ratio is {min_f1_ratio:g}; it must be more than 0 and at most 1, such as 0.999")
    if max_f1_drop is None and min_f1_ratio is None:
        return None
    return F1Limit(max_f1_drop=max_f1_drop, min_f1_ratio=min_f1_ratio)
