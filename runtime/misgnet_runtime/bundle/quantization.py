"""Defines the manifest's entries about quantized graphs: each operator's precision and scales, and repairs tried."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from misgnet_runtime.bundle.fields import FilePath, Name, Text
from misgnet_runtime.storage.schema import Count, Fraction, Struct


class Calibration(Struct, frozen=True):
    """The tiles that activation ranges were measured on."""

    # Number of calibration tiles.
    tiles: int
    # Digest of the calibration tiles.
    tiles_sha256: Text
    # Seed of the random selection.
    seed: int
    # The tiles that calibrators and repairs were compared on.
    decided_on: Text
    # How the calibration tiles were selected.
    selection: Text = "drawn at random"


class PlacementRule(Struct, frozen=True):
    """A rule that assigns a precision to operators."""

    # Name of the rule; ``placement`` refers to it.
    name: Text
    # The reason for the rule.
    why: Text
    # The publication or documentation that the rule is based on.
    source: Text


class Steps(Struct, frozen=True):
    """The quantization of an activation: its real value is ``scale * (quantized value - zero)``."""

    # The difference between neighbouring quantized values.
    scale: Annotated[float, Meta(gt=0)]
    # The quantized value that represents 0.
    zero: Annotated[int, Meta(ge=-128, le=255)]
    # Whether quantized values are INT8 (true) or UINT8 (false).
    signed: bool

    @property
    def limits(self) -> tuple[int, int]:
        """Returns the lowest and the highest quantized value."""
        return (-128, 127) if self.signed else (0, 255)


class Int8Numbers(Struct, frozen=True):
    """The quantization parameters of an INT8 operator with a weight, as in its graph.

    They are sufficient to reproduce the operator's computation in floating point. Weights are quantized symmetrically
    with one scale per output channel.
    """

    # Quantization of the operator's input.
    activation: Steps
    # Bits of a quantized weight.
    weight_bits: Annotated[int, Meta(ge=2, le=8)]
    # The axis of the weight that holds its output channels.
    weight_axis: Count
    # Quantization of the output of the operator, or of the ReLU fused into it; null if the output is not INT8.
    output: Steps | None = None
    # Whether the bias is INT32 with the product of the activation's and the weight's scale.
    quantized_bias: bool = False
    # Whether the weight's scales are rounded up to the next float16.
    float16_scales: bool = False


class NodePlacement(Struct, frozen=True):
    """The precision of one operator of the float graph, and the rule that assigned it."""

    # Name of the operator in the float graph.
    node: Text
    # Its ONNX type, for example "Conv".
    operator: Text
    # The precision that it is computed in.
    precision: Literal["int8", "float16", "float32"]
    # Name of the rule; see ``rules``.
    rule: Text
    # MACs with the operator's constant weight for one image pair; 0 if it has none.
    multiply_adds: Count
    # Quantization parameters of an INT8 operator with a weight.
    int8: Int8Numbers | None = None
    # Divisors of a LayerNorm's channels (SmoothQuant); the following weights are multiplied by them.
    divided_by: list[Annotated[float, Meta(gt=0)]] = msgspec.field(default_factory=list)
    # Quantization of each input of an INT8 operator without a weight.
    operands: list[Steps] = msgspec.field(default_factory=list)


class RepairEntry(Struct, frozen=True):
    """A repair of an INT8 graph that was tried on the validation tiles."""

    # "smoothing" (SmoothQuant), "rounding" of weights, or "bias" (bias correction).
    name: Text
    # Whether the repair improved the graph and was kept.
    kept: bool
    # The result in words.
    finding: Text
    # Share of pixels whose mask equals the float model's, before the repair.
    pixels_before: float
    # The same share after the repair.
    pixels_after: float
    # Mean absolute difference from the float model's probability of change, before the repair.
    mean_before: float
    # The same difference after the repair.
    mean_after: float
    # Time that the repair took, in seconds.
    seconds: float


class Quantization(Struct, frozen=True):
    """The conversion of one graph to INT8 or float16."""

    # Relative path of the graph.
    graph: FilePath
    # Name of the quantization recipe.
    recipe: Name
    # Number of operators in INT8.
    quantized_nodes: int
    # Bits of a quantized weight; 16 for a graph without INT8.
    weight_bits: int
    # Share of the MACs with constant weights that are computed in INT8, 0 to 1.
    int8_share_of_multiply_adds: Fraction
    # Name of the selected calibrator; "none" for a graph without INT8.
    calibrator: Name
    # Share of pixels whose mask equals the float model's, by name of each calibrator that was tried.
    candidates: dict[Text, float] = msgspec.field(default_factory=dict)
    # Names of the operators that stay in float32.
    float32_nodes: list[Text] = msgspec.field(default_factory=list)
    # The rules that assigned precisions.
    rules: list[PlacementRule] = msgspec.field(default_factory=list)
    # The precision of each operator.
    placement: list[NodePlacement] = msgspec.field(default_factory=list)
    # The repairs that were tried.
    repairs: list[RepairEntry] = msgspec.field(default_factory=list)
    # Calibrator by tensor, if they differ between tensors.
    calibrators: dict[Text, Text] = msgspec.field(default_factory=dict)

    def shares(self) -> dict[str, float]:
        """Returns the share of the weights' MACs in each precision, the lowest precision first."""
        total = max(1, sum(entry.multiply_adds for entry in self.placement))
        found = dict.fromkeys(("int8", "float16", "float32"), 0)
        for entry in self.placement:
            found[entry.precision] += entry.multiply_adds
        return {name: count / total for name, count in found.items()}
