"""Accuracy control: reverts quantized groups to float until the metric is within its limit, at the least cost in speed.

``decision`` holds the values and pure decisions, ``search`` the search, ``run`` its measurements, ``groups`` the
operators that are reverted together. The caller's ``evaluate`` runs the engines.
"""

from misgnet_calibration.algorithms.accuracy_control.decision import (
    NO_NUMBERS,
    Effect,
    Group,
    Limit,
    Measurement,
    Phase,
    Step,
    loss,
    passes,
)
from misgnet_calibration.algorithms.accuracy_control.groups import groups_of, listed, ties_of
from misgnet_calibration.algorithms.accuracy_control.run import Evaluate, Listen
from misgnet_calibration.algorithms.accuracy_control.search import ControlReport, Stopped, control

__all__ = [
    "NO_NUMBERS", "ControlReport", "Effect", "Evaluate", "Group", "Limit", "Listen", "Measurement", "Phase",
    "Step", "Stopped", "control", "groups_of", "listed", "loss", "passes", "ties_of",
]  # fmt: skip
