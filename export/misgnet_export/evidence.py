"""Defines records of a build's evidence: pictures of tiles, the steps of accuracy control, the kernels of plans."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from misgnet_calibration.algorithms.accuracy_control import ControlReport, Effect, Phase, Step, Stopped, loss
from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.engines.tensorrt.layers import Kernel, ProfileLayers, Share
from misgnet_runtime.engines.tensorrt.plan import Plan, PlanOptions
from misgnet_runtime.engines.tensorrt.roofline import Roofline, rooflines
from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Fraction, Positive, Struct


@dataclass(frozen=True, kw_only=True)
class TilePicture:
    """One tile of the report. Raises ValueError if the sizes of the arrays differ."""

    name: str
    caption: str
    before: Image  # uint8 (H, W, 3), like after
    after: Image
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
    int8_share_of_multiply_adds: Fraction
    seconds: float
    accepted: bool
    reason: str
    estimated: bool = False  # measured on fewer tiles: used to rank groups, not to decide


class ControlSpeed(Struct, frozen=True):
    """Speed of the result of accuracy control beside the graph that it started from: one pair per call, one thread."""

    engine: str  # the library that ran both
    ratio: float  # pairs per second after divided by before


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
    speed: ControlSpeed | None = None  # None: nothing was reverted, or no engine of this machine opens the graph

    @property
    def chosen(self) -> StepRecord:
        """The best step that passed; if none passed, the one closest to the limit."""
        return self.steps[self.result - 1]


class ProfileRecord(Struct, frozen=True):
    """The kernels of one optimization profile of a plan; one inference runs all of them."""

    # Smallest, typical and largest batch.
    batches: tuple[Positive, Positive, Positive]
    # Device memory for the activations of one stream, in bytes; null: not known.
    context_bytes: Count | None
    # Streams that the kernels run in.
    streams: Count
    # All kernels.
    total: Share
    # The kernels of the semantic guidance.
    guidance: Share
    # The kernels by their precision: "int8", "float16", "float32" or "other".
    by_precision: dict[str, Share]
    # The kernels by part of the network.
    by_part: dict[str, Share]
    # Kernels that only move or convert values.
    moves: Count
    # INT8 convolutions and products that write FP32.
    int8_writes_float32: Count
    # The shortest time on listed GPUs of the plan's compute capabilities; empty: none is listed, or sizes are unknown.
    rooflines: list[Roofline]
    # Every kernel, in the order of execution.
    kernels: list[Kernel]


class PlanRecord(Struct, frozen=True):
    """The kernels of a TensorRT plan, as its builder listed them."""

    # Name of the engine that runs the plan.
    engine: str
    # What the plan computes: the whole network, or a part of a split engine.
    part: Literal["whole", "encoder", "head"]
    # Precision of the graph that it was compiled from.
    precision: str
    # "rtx" or "tensorrt".
    vendor: str
    # Version of TensorRT.
    vendor_version: str
    # Compute capabilities of its GPUs.
    compute_capabilities: list[str]
    # Its optimization profiles; empty if the kernels are not known.
    profiles: list[ProfileRecord]
    # Why the kernels are not known; empty if they are.
    note: str = ""

    @property
    def title(self) -> str:
        return self.engine if self.part == "whole" else f"{self.engine} {self.part}"


def plan_record(engine: str, part: str, precision: str, plan: Plan, options: PlanOptions) -> PlanRecord:
    """Returns the record of a plan; ``part`` is "encoder", "head" or, for a whole graph, empty."""
    bound = plan.compatibility
    return PlanRecord(
        engine=engine, part=msgspec.convert(part or "whole", Literal["whole", "encoder", "head"]), precision=precision,
        vendor=bound.vendor, vendor_version=bound.vendor_version, compute_capabilities=list(bound.compute_capabilities),
        profiles=[
            _profile_record(batches, layers, bound.compute_capabilities)
            for batches, layers in zip(options.profiles, plan.layers.profiles, strict=False)
        ],
        note=plan.layers.note,
    )  # fmt: skip


def _profile_record(
    batches: tuple[int, int, int], layers: ProfileLayers, compute_capabilities: Sequence[str]
) -> ProfileRecord:
    return ProfileRecord(
        batches=batches, context_bytes=layers.context_bytes, streams=layers.streams(), total=layers.total(),
        guidance=layers.guidance(), by_precision=layers.by_precision(), by_part=layers.by_part(), moves=layers.moves(),
        int8_writes_float32=layers.int8_writes_float32(), rooflines=rooflines(layers.kernels, compute_capabilities),
        kernels=layers.kernels,
    )  # fmt: skip


def decode_plan_record(name: str, data: bytes) -> PlanRecord:
    """Decodes the file ``name``. Raises InputError if it is damaged or of another version of this program."""
    try:
        return msgspec.json.decode(data, type=PlanRecord)
    except JSON_ERRORS as error:
        raise InputError(f"{name} cannot be read: {error}; build the bundle again") from error


def record_of(report: ControlReport, speed: ControlSpeed | None = None) -> ControlRecord:
    """Converts ``report`` to the record that is kept in a bundle; ``speed`` is what reverting operators cost."""
    return ControlRecord(
        limit_points=report.limit.points, min_agreement=report.limit.agreement,
        budget_seconds=_finite(report.budget_seconds), seconds=report.seconds, passed=report.passed,
        stopped=report.stopped, result=report.result.number,
        groups=[GroupRecord(group.name, list(group.nodes), group.multiply_adds) for group in report.groups],
        ranking=[_effect_record(effect) for effect in report.effects],
        steps=[_step_record(step) for step in report.steps], speed=speed,
    )  # fmt: skip


def _effect_record(effect: Effect) -> EffectRecord:
    won, error = _finite(effect.points), _finite(effect.error)
    return EffectRecord(list(effect.groups), won, error, effect.benefit, effect.score)


def _step_record(step: Step) -> StepRecord:
    found = step.measurement
    return StepRecord(
        number=step.number, phase=step.phase, changed=list(step.changed), float_groups=list(step.float_groups),
        f1_drop_points=_finite(found.f1_drop), loss_points=_finite(loss(found)), agreement=found.agreement,
        logit_error=_finite(found.logit_error),
        int8_share_of_multiply_adds=step.int8_share, seconds=step.seconds, accepted=step.accepted, reason=step.reason,
        estimated=step.estimated,
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    """Returns None for infinity, which JSON cannot hold; a difference from infinity is the largest float."""
    return None if value is None or abs(value) >= sys.float_info.max else value
