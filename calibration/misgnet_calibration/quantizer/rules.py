"""Defines which operators become INT8, as data: a table of rules per kind of engine; the first matching rule applies.

A rule states which operators it matches, the decision, the reason, and its source (the vendor or a measurement). This
module does not inspect graphs; ``placement`` applies the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Decision = Literal["int8", "float"]

_TENSORRT = "docs.nvidia.com/deeplearning/tensorrt, Working with Quantized Types"
_MODELOPT = "github.com/NVIDIA/Model-Optimizer, ONNX quantization: node exclusions"
_ORT = "onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
_ORT_TRANSFORMERS = f"{_ORT}, transformer-based models"
_ONNX = "onnx.ai/onnx/operators: inputs and outputs of the operator"
_ONNX_GRID = "onnx.ai/onnx/operators: GridSample, coordinates from -1 to 1"
_ONNX_RESIZE = "onnx.ai/onnx/operators: Resize, mode linear"
_REQUESTED = "requested with --placement all"
_OPENVINO = "docs.openvino.ai, OpenVINO Low Precision Transformations"
_OPENVINO_CONV = "docs.openvino.ai, ConvolutionTransformation: activations dequantized per tensor"
_DECONVOLUTION = (
    "github.com/NVIDIA/TensorRT/issues/1694, 1699: wrong results, versions differ in the axis of its scales; 1934: "
    "groups are rejected"
)
_GROUPED = "github.com/NVIDIA/TensorRT/issues/4529: grouped INT8 is slower than FP16"
_MEASURED_INVERTED = (
    "measured on an EfficientNet's first stages, LEVIR-CD, ONNX Runtime 1.32: with these in INT8 as well, the graph "
    "takes 1.2 to 1.3 times as long and loses 0.23 % of its F1 instead of 0.09 %"
)
_MEASURED_DEPTHWISE = (
    "measured on LEVIR-CD in ONNX Runtime 1.32 and OpenVINO 2026.4: the agreement is the same as in float, and the "
    "graph is 1.1 to 1.25 times as fast"
)
_MEASURED_RESIDUAL = (
    "github.com/Jonah-May-OSS/wyoming-whisper-trt/issues/1052: feature cosine 0.61 with Add and LayerNorm in INT8, "
    "0.98 with both in float"
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of a table. It matches an operator if all conditions that are given hold."""

    name: str
    decision: Decision
    why: str
    source: str
    operators: tuple[str, ...] = ()  # operator types; empty: all
    within: tuple[str, ...] = ()  # patterns of ``fnmatch`` for the operator's module; empty: all
    weighted: bool | None = None  # a constant matrix or kernel is an input
    stacked: bool | None = None  # a constant of more than two dimensions is an input: several matrices
    activations: bool | None = None  # the operator reads a float tensor that is not a constant
    grouped: bool | None = None  # a grouped convolution
    depthwise: bool | None = None  # a grouped convolution whose groups have one input channel
    shaped: bool | None = None  # shapes of input and output can be inferred
    interpolation: bool | None = None  # a product with an interpolation matrix, which replaces a resize
    # An output that the recipe would quantize, of the operator or of a ReLU after it, is an output of the graph.
    feeds_output: bool | None = None
    fewer_channels: int | None = None  # the weight has fewer input or output channels than this
    fewer_rows: int | None = None  # the weight is applied to fewer positions of an image pair than this


_INTERPOLATION = Rule(
    name="interpolation", decision="float",
    why="a resize written as products: its matrices are no weights, and the logits that it resizes need all their bits",
    source=_ONNX_RESIZE,
    operators=("MatMul",), interpolation=True,
)  # fmt: skip
_TRANSPOSED = Rule(
    name="transposed convolution", decision="float",
    why="ONNX Runtime has no INT8 kernel for it, versions of TensorRT disagree about the axis of its weight's scales",
    source=_DECONVOLUTION,
    operators=("ConvTranspose",),
)  # fmt: skip
_NO_WEIGHT = (
    _INTERPOLATION,
    Rule(
        name="unknown shape", decision="float", why="its shape cannot be inferred, so neither can what INT8 saves",
        source=_ONNX,
        operators=("Conv", "MatMul", "Gemm"), shaped=False,
    ),
    Rule(
        name="stacked weights", decision="float",
        why="a product with several matrices, of dates in the guidance or heads in attention, has no single axis "
        "of output channels, and graph nodes and values are too few for INT8 to pay off",
        source=_TENSORRT,
        operators=("MatMul",), stacked=True,
    ),
    Rule(
        name="product of activations", decision="float",
        why="scores and attention weights lose their order in 8 bits, and it saves little time",
        source=_ORT_TRANSFORMERS,
        operators=("MatMul", "Gemm"), weighted=False,
    ),
    Rule(
        name="normalisation", decision="float", why="means and variances of 8-bit numbers are coarse",
        source=_MEASURED_RESIDUAL,
        operators=(
            "LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
            "RMSNormalization", "MeanVarianceNormalization", "LpNormalization", "ReduceMean", "ReduceL2",
        ),
    ),
    Rule(
        name="residual sum", decision="float", why="errors add up along the residual stream", source=_MEASURED_RESIDUAL,
        operators=("Add",),
    ),
    Rule(
        name="transcendental", decision="float", why="INT8 kernels gain nothing", source=_TENSORRT,
        operators=(
            "Softmax", "LogSoftmax", "Gelu", "Erf", "Sigmoid", "Tanh", "Softplus", "Mish", "Elu", "Exp", "Log", "Sqrt",
            "Div", "Pow",
        ),
    ),
    _TRANSPOSED,
    Rule(
        name="no constant two-dimensional kernel", decision="float", why="only convolutions of maps have INT8 kernels",
        source=_TENSORRT,
        operators=("Conv",), weighted=False,
    ),
    Rule(
        name="sampling at coordinates", decision="float", why="256 coordinates across a map miss its pixels",
        source=_ONNX_GRID,
        operators=("GridSample",),
    ),
    Rule(name="not weighted", decision="float", why="it has no MACs to save", source=_TENSORRT, weighted=False),
)  # fmt: skip
_FLOAT_DEPTHWISE = Rule(
    name="depthwise convolution", decision="float", why="gains little in INT8 and loses much", source=_MODELOPT,
    operators=("Conv",), depthwise=True,
)  # fmt: skip
_FLOAT_INVERTED = Rule(
    name="depthwise convolution", decision="float",
    why="between activations that stay float, INT8 costs time and accuracy",
    source=_MEASURED_INVERTED,
    operators=("Conv",), depthwise=True,
)  # fmt: skip
_FLOAT_GROUPED = Rule(
    name="grouped convolution", decision="float", why="its INT8 kernels are slower than those of FP16", source=_GROUPED,
    operators=("Conv",), grouped=True,
)  # fmt: skip
INT8_DEPTHWISE = Rule(
    name="depthwise convolution", decision="int8",
    why="the widest maps of the MLP stay INT8: a quarter of the bytes, no additional loss", source=_MEASURED_DEPTHWISE,
    operators=("Conv",), weighted=True, depthwise=True,
)  # fmt: skip
_SMALL = (
    Rule(
        name="few channels", decision="float", why="with fewer than 16, vector units are not filled", source=_MODELOPT,
        operators=("Conv", "MatMul", "Gemm"), fewer_channels=16,
    ),
    Rule(
        name="few positions", decision="float",
        why="quantizing costs more than the product saves", source=_MODELOPT,
        operators=("Conv", "MatMul", "Gemm"), fewer_rows=16,
    ),
)  # fmt: skip
_GEMM = Rule(
    name="Gemm", decision="float", why="the channel axis of its transposed weight is ambiguous", source=_TENSORRT,
    operators=("Gemm",),
)  # fmt: skip


def _weighted(source: str) -> tuple[Rule, ...]:
    return (
        Rule(
            name="convolution", decision="int8", why="input and weight in INT8", source=source, operators=("Conv",),
            weighted=True,
        ),
        Rule(
            name="linear layer", decision="int8", why="input and weight in INT8", source=source,
            operators=("MatMul", "Gemm"), weighted=True,
        ),
    )  # fmt: skip


_REST = (Rule(name="everything else", decision="float", why="no rule selects INT8", source=_TENSORRT),)
_LAST_CONV = Rule(
    name="graph output", decision="float", why="its output would have to be INT8, but is an output of the graph",
    source=_ORT,
    operators=("Conv",), feeds_output=True,
)  # fmt: skip

TENSORRT_RULES = (
    *_NO_WEIGHT,
    _GEMM,
    _FLOAT_DEPTHWISE,
    _FLOAT_GROUPED,
    *_SMALL,
    *_weighted(f"{_TENSORRT}: quantize all inputs of weighted operators"),
    *_REST,
)
ORT_X86_RULES = (*_NO_WEIGHT, _GEMM, _FLOAT_INVERTED, *_SMALL, _LAST_CONV, *_weighted(_ORT), *_REST)
ORT_ARM_RULES = ORT_X86_RULES
# Has no rules for operators that lose much or gain little: accuracy control finds these by measurement.
EVERYTHING_RULES = (
    _INTERPOLATION,
    Rule(
        name="no activation", decision="float",
        why="reads raw images, integers or constants, but no float activation", source=_ONNX, activations=False,
    ),
    Rule(
        name="rearrangement", decision="float",
        why="only moves values; the operators that compute with them quantize them", source=_ONNX,
        operators=(
            "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Slice", "Split", "Gather",
            "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
        ),
    ),
    _TRANSPOSED,
    Rule(
        name="shape", decision="float", why="reads the size of a tensor, not its values", source=_ONNX,
        operators=("Shape", "Size"),
    ),
    _LAST_CONV,
    *_weighted(_REQUESTED),
    Rule(
        name="without weights", decision="int8",
        why="every float activation that it reads is INT8; constants stay float", source=_REQUESTED,
    ),
)  # fmt: skip
# Selects no INT8: the whole table of a float16 graph.
FLOAT16_RULES = (
    Rule(
        name="FP16 requested", decision="float", why="half precision, or float32 where half precision fails",
        source="docs.nvidia.com/deeplearning/tensorrt, Strongly Typed Networks",
    ),
)  # fmt: skip
OPENVINO_RULES = (*_NO_WEIGHT, _GEMM, INT8_DEPTHWISE, *_SMALL, *_weighted(f"{_OPENVINO}; {_OPENVINO_CONV}"), *_REST)
