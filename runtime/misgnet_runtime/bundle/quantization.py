"""What the manifest states of quantized graphs: precision and numbers of each operator, and what was tried."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from misgnet_runtime.bundle.fields import FilePath, Name, Text
from misgnet_runtime.storage.schema import Count, Fraction, Struct


class Calibration(Struct, frozen=True):
    """The tiles that activations' ranges were observed on, how they were chosen, and those that decided."""

    tiles: int
    tiles_sha256: Text
    seed: int
    decided_on: Text
    selection: Text = "drawn at random"


class PlacementRule(Struct, frozen=True):
    """Why operators have their precision, and who says so."""

    name: Text
    why: Text
    source: Text


class Steps(Struct, frozen=True):
    """What an activation is counted in: its value is ``scale * (level - zero)``, with INT8 levels or UINT8 ones."""

    scale: Annotated[float, Meta(gt=0)]
    zero: Annotated[int, Meta(ge=-128, le=255)]
    signed: bool

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest level."""
        return (-128, 127) if self.signed else (0, 255)


class Int8Numbers(Struct, frozen=True):
    """What an INT8 operator counts in, as its graph states it: enough to compute as it does, in floating point.

    A weight's levels are symmetric, ``weight_bits`` wide, in one scale for each output channel, which lie along
    ``weight_axis``. ``output``: of what the operator, or the ReLU fused into it, writes in INT8. ``float16_scales``:
    weights' scales are the next larger float16; ``quantized_bias``: the bias is INT32, in steps of both scales.
    """

    activation: Steps
    weight_bits: Annotated[int, Meta(ge=2, le=8)]
    weight_axis: Count
    output: Steps | None = None
    quantized_bias: bool = False
    float16_scales: bool = False


class NodePlacement(Struct, frozen=True):
    """One operator of the float graph: what it is computed in, by which rule.

    ``multiply_adds``: of one image pair, with a constant weight; ``int8``: the numbers of an INT8 operator with a
    weight; ``divided_by``: what a LayerNorm's channels were divided by to smooth them, where the weights behind
    undo it; ``operands``: of an INT8 operator without a weight, what each activation that it reads is counted in.
    """

    node: Text
    operator: Text
    precision: Literal["int8", "float16", "float32"]
    rule: Text
    multiply_adds: Count
    int8: Int8Numbers | None = None
    divided_by: list[Annotated[float, Meta(gt=0)]] = msgspec.field(default_factory=list)
    operands: list[Steps] = msgspec.field(default_factory=list)


class RepairEntry(Struct, frozen=True):
    """One repair of an INT8 graph that was tried on the validation tiles, and kept where it helped.

    Shares of equal pixels, and mean differences of the probability of change, before and after.
    """

    name: Text
    kept: bool
    finding: Text
    pixels_before: float
    pixels_after: float
    mean_before: float
    mean_after: float
    seconds: float


class Quantization(Struct, frozen=True):
    """What became INT8 or float16 in one graph, and how.

    ``candidates``: share of equal pixels by calibrator tried; ``calibrators``: by tensor, where each has its own.
    A graph without INT8 has 16 ``weight_bits`` and the calibrator "none".
    """

    graph: FilePath
    recipe: Name
    quantized_nodes: int
    weight_bits: int
    int8_share_of_multiply_adds: Fraction
    calibrator: Name
    candidates: dict[Text, float] = msgspec.field(default_factory=dict)
    float32_nodes: list[Text] = msgspec.field(default_factory=list)
    rules: list[PlacementRule] = msgspec.field(default_factory=list)
    placement: list[NodePlacement] = msgspec.field(default_factory=list)
    repairs: list[RepairEntry] = msgspec.field(default_factory=list)
    calibrators: dict[Text, Text] = msgspec.field(default_factory=dict)

    def shares(self) -> dict[str, float]:
        """Share of the weights' multiply-adds in each precision, the lowest precision first."""
        total = max(1, sum(entry.multiply_adds for entry in self.placement))
        found = dict.fromkeys(("int8", "float16", "float32"), 0)
        for entry in self.placement:
            found[entry.precision] += entry.multiply_adds
        return {name: count / total for name, count in found.items()}
