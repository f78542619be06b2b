"""Defines records of a build's evidence: pictures of tiles, and the steps of accuracy control."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from misgnet_calibration.algorithms.accuracy_control import ControlReport, Effect, Phase, Step, Stopped, loss
from misgnet_runtime.callables import Mask, RgbImage
from misgnet_runtime.storage.schema import Fraction, Struct


@dataclass(frozen=True, kw_only=True)
class TilePicture:
    """One tile of the report. Raises ValueError if the sizes of the arrays differ."""

    name: str
    caption: str
    before: RgbImage  # uint8 (H, W, 3), like after
    after: RgbImage
    label: Mask  # bool (H, W), like reference and engine
    reference: Mask  # of the float model
    engine: Mask

    def __post_init__(self) -> None:
        size = self.label.shape
        shapes = [self.before.shape[:2], self.after.shape[:2], self.reference.shape, self.engine.shape]
        if any(shape != size for shape in shapes):
            raise ValueError(f"tile {self.name}: the label is {size}, the others are {shapes}; crop all to one size")


class GroupRecord(Struct, frozen=True):
    """Nodes that return to float together; ``multiply_adds`` counts MACs per image pair."""

    name: str
    nodes: list[str]
    multiply_adds: int


class EffectRecord(Struct, frozen=True):
    """The gain of accuracy if only ``groups`` return to float; None if not measured or not finite."""

    groups: list[str]
    won_points: float | None
    won_logit_error: float | None
    benefit: float
    score: float


class StepRecord(Struct, frozen=True):
    """One evaluation; see ``misgnet_calibration.algorithms.accuracy_control.Step``. None: the value is not finite."""

    number: int
    phase: Phase
    changed: list[str]
    float_groups: list[str]
    f1_drop_points: float | None
    loss_points: float | None  # compared with the limit: the F1 drop, or the share of pixels that differ
    agreement: Fraction
    logit_error: float | None
    seconds_per_pair: float | None
    int8_share_of_multiply_adds: Fraction
    seconds: float
    accepted: bool
    reason: str
    estimated: bool = False  # measured on fewer tiles: used to rank groups, not to decide


class ControlRecord(Struct, frozen=True):
    """The record of a search that is kept in a bundle."""

    limit_points: float
    min_agreement: Fraction | None
    budget_seconds: float | None
    seconds: float
    passed: bool
    stopped: Stopped
    result: int  # number of the chosen step, from 1
    groups: list[GroupRecord]
    ranking: list[EffectRecord]  # in the order in which groups are reverted
    steps: list[StepRecord]

    @property
    def chosen(self) -> StepRecord:
        """The best step that passed; if none passed, the one closest to the limit."""
        return self.steps[self.result - 1]


def record_of(report: ControlReport) -> ControlRecord:
    """Converts ``report`` to the record that is kept in a bundle."""
    return ControlRecord(
        limit_points=report.limit.points, min_agreement=report.limit.agreement,
        budget_seconds=_finite(report.budget_seconds), seconds=report.seconds, passed=report.passed,
        stopped=report.stopped, result=report.result.number,
        groups=[GroupRecord(group.name, list(group.nodes), group.multiply_adds) for group in report.groups],
        ranking=[_effect_record(effect) for effect in report.effects],
        steps=[_step_record(step) for step in report.steps],
    )  # fmt: skip


def _effect_record(effect: Effect) -> EffectRecord:
    won, error = _finite(effect.points), _finite(effect.error)
    return EffectRecord(list(effect.groups), won, error, effect.benefit, effect.score)


def _step_record(step: Step) -> StepRecord:
    found = step.measurement
    return StepRecord(
        number=step.number, phase=step.phase, changed=list(step.changed), float_groups=list(step.float_groups),
        f1_drop_points=_finite(found.f1_drop), loss_points=_finite(loss(found)), agreement=found.agreement,
        logit_error=_finite(found.logit_error), seconds_per_pair=found.seconds_per_pair,
        int8_share_of_multiply_adds=step.int8_share, seconds=step.seconds, accepted=step.accepted, reason=step.reason,
        estimated=step.estimated,
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    """Returns None for infinity, which JSON cannot hold; a difference from infinity is the largest float."""
    return None if value is None or abs(value) >= sys.float_info.max else value
