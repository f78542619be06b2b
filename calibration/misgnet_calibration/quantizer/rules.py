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
_ONNX_RESIZE = "onnx.ai/onnx/operators: Resize, mode linear"
_REQUESTED = "requested with --placement all"
_OPENVINO = "docs.openvino.ai, OpenVINO Low Precision Transformations"
_OPENVINO_CONV = "docs.openvino.ai, ConvolutionTransformation: activations dequantized per tensor"
_MEASURED_DEPTHWISE = (
    "measured on LEVIR-CD in ONNX Runtime 1.32 and OpenVINO 2026.4: the agreement is the same as in float, and the "
    "graph is 1.1 to 1.25 times as fast"
)
_COUNTED = "kernels and bytes that TensorRT-RTX 1.7.1 lists for SM86 and one pair; FP16 has 212 kernels, 278 MB"
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
_NO_WEIGHT = (
    _INTERPOLATION,
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
        operators=("LayerNormalization", "BatchNormalization", "InstanceNormalization", "ReduceMean", "ReduceL2"),
    ),
    Rule(
        name="residual sum", decision="float", why="errors add up along the residual stream", source=_MEASURED_RESIDUAL,
        operators=("Add",),
    ),
    Rule(
        name="transcendental", decision="float", why="INT8 kernels gain nothing", source=_TENSORRT,
        operators=("Softmax", "Gelu", "Erf", "Sigmoid", "Exp", "Sqrt", "Div", "Pow"),
    ),
    Rule(name="not weighted", decision="float", why="it has no MACs to save", source=_TENSORRT, weighted=False),
)  # fmt: skip
_FLOAT_DEPTHWISE = Rule(
    name="depthwise convolution", decision="float", why="gains little in INT8 and loses much", source=_MODELOPT,
    operators=("Conv",), grouped=True,
)  # fmt: skip
_INT8_DEPTHWISE = Rule(
    name="depthwise convolution", decision="int8",
    why="the widest maps of the MLP stay INT8: a quarter of the bytes, no additional loss", source=_MEASURED_DEPTHWISE,
    operators=("Conv",), weighted=True, grouped=True,
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

# TensorRT converts between INT8 and FP16 in kernels of its own unless INT8 operators follow each other.
_FLOAT_ATTENTION = Rule(
    name="linear layer of attention", decision="float",
    why="FP16 adds the bias in the same kernel and feeds one fused kernel of attention; the INT8 weight of keys and "
    "values is dequantized at every inference", source=_COUNTED,
    operators=("MatMul",), within=("backbone.*.attn.*",),
)  # fmt: skip
_FLOAT_WIDE_MLP = Rule(
    name="wide MLP", decision="float",
    why="maps of eight times the channels, which INT8 kernels write in FP32: twelve such layers in INT8 move 449 MB",
    source=_COUNTED, operators=("Conv", "MatMul"), within=("backbone.block[12].*.mlp.fc[12]",),
)  # fmt: skip
# The INT8 convolutions of TensorRT for RTX write FP32, whether their output is quantized or not.
_FLOAT_ENCODER = Rule(
    name="encoder", decision="float",
    why="INT8 saves less time than its FP32 outputs cost: reduction convolutions have 4 % of the MACs and move 10 MB "
    "more, patch embeddings 6 % and 3 MB, the last MLPs 14 % and 15 MB; the decoder has 27 % and moves 8 MB more",
    source=_COUNTED, within=("backbone.*",),
)  # fmt: skip

TENSORRT_RULES = (
    *_NO_WEIGHT,
    _FLOAT_ATTENTION,
    _FLOAT_WIDE_MLP,
    _GEMM,
    _FLOAT_DEPTHWISE,
    *_SMALL,
    *_weighted(f"{_TENSORRT}: quantize all inputs of weighted operators"),
    *_REST,
)
RTX_RULES = (_FLOAT_ENCODER, *TENSORRT_RULES)
ORT_X86_RULES = (*_NO_WEIGHT, _GEMM, _INT8_DEPTHWISE, *_SMALL, _LAST_CONV, *_weighted(_ORT), *_REST)
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
OPENVINO_RULES = (*_NO_WEIGHT, _GEMM, _INT8_DEPTHWISE, *_SMALL, *_weighted(f"{_OPENVINO}; {_OPENVINO_CONV}"), *_REST)
