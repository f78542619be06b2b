"""Accuracy control: which quantized groups go back to float so that the metric is kept, at the least cost in speed.

``decision`` holds the values and pure decisions, ``search`` the search around them, ``run`` what it has measured,
``groups`` what is reverted together. Engines are asked by the caller's ``evaluate``.
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
from misgnet_calibration.algorithms.accuracy_control.groups import Depth, groups_of, listed, ties_of
from misgnet_calibration.algorithms.accuracy_control.run import Evaluate, Listen
from misgnet_calibration.algorithms.accuracy_control.search import ControlReport, Stopped, control

__all__ = [
    "NO_NUMBERS", "ControlReport", "Depth", "Effect", "Evaluate", "Group", "Limit", "Listen", "Measurement", "Phase",
    "Step", "Stopped", "control", "groups_of", "listed", "loss", "passes", "ties_of",
]  # fmt: skip
