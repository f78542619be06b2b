"""Which operators become INT8, as data: for each kind of engine a table of rules, the first that fits decides.

A rule says what it fits, what becomes of that, why, and where the vendor (or a measurement) says so. Nothing here
looks at a graph; ``placement`` does, with these tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Decision = Literal["int8", "float"]

_TENSORRT = "docs.nvidia.com/deeplearning/tensorrt, Working with Quantized Types"
_MODELOPT = "github.com/NVIDIA/Model-Optimizer, ONNX quantization: node exclusions"
_ORT = "onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
_ORT_TRANSFORMERS = f"{_ORT}, transformer-based models"
_ONNX = "onnx.ai/onnx/operators: what the operator reads and writes"
_ASKED = "asked for with --placement all"
_OPENVINO = "docs.openvino.ai, OpenVINO Low Precision Transformations"
_OPENVINO_CONV = "docs.openvino.ai, ConvolutionTransformation: activations dequantized per tensor"
_MEASURED_DEPTHWISE = (
    "measured on LEVIR-CD in ONNX Runtime 1.32 and OpenVINO 2026.4: as many pixels agree as with it in float, the "
    "graph is 1.1 to 1.25 times as fast"
)
_MEASURED_RESIDUAL = (
    "github.com/Jonah-May-OSS/wyoming-whisper-trt/issues/1052: feature cosine 0.61 with Add and LayerNorm in INT8, "
    "0.98 without"
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row. Of the limits, those that are given must hold; ``operators`` empty fits every operator.

    ``weighted``: a constant weight takes part; ``activations``: the operator reads a float tensor that is no
    constant; ``grouped``: a convolution in groups; ``fewer_channels`` and ``fewer_rows``: the weight has fewer
    input or output channels, or is applied to fewer positions of an image pair; ``feeds_output``: an output that
    the recipe would quantize, of the operator or of the ReLU behind it, is an output of the graph.
    """

    name: str
    decision: Decision
    why: str
    source: str
    operators: tuple[str, ...] = ()
    weighted: bool | None = None
    activations: bool | None = None
    grouped: bool | None = None
    feeds_output: bool | None = None
    fewer_channels: int | None = None
    fewer_rows: int | None = None


_NO_WEIGHT = (
    Rule(
        name="product of activations", decision="float",
        why="scores and attention weights lose their order in 8 bits, for little time", source=_ORT_TRANSFORMERS,
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
        name="transcendental", decision="float", why="no INT8 kernel gains from it", source=_TENSORRT,
        operators=("Softmax", "Gelu", "Erf", "Sigmoid", "Exp", "Sqrt", "Div", "Pow"),
    ),
    Rule(name="not weighted", decision="float", why="no multiply-adds to gain", source=_TENSORRT, weighted=False),
)  # fmt: skip
_FLOAT_DEPTHWISE = Rule(
    name="depthwise convolution", decision="float", why="gains little in INT8 and loses much", source=_MODELOPT,
    operators=("Conv",), grouped=True,
)  # fmt: skip
_INT8_DEPTHWISE = Rule(
    name="depthwise convolution", decision="int8",
    why="the MLP's widest maps stay INT8: a quarter of their bytes, no more lost", source=_MEASURED_DEPTHWISE,
    operators=("Conv",), weighted=True, grouped=True,
)  # fmt: skip
_SMALL = (
    Rule(
        name="few channels", decision="float", why="below 16 the vector units are not filled", source=_MODELOPT,
        operators=("Conv", "MatMul", "Gemm"), fewer_channels=16,
    ),
    Rule(
        name="few positions", decision="float",
        why="quantizing costs more than the product: graph nodes of the guidance", source=_MODELOPT,
        operators=("Conv", "MatMul", "Gemm"), fewer_rows=16,
    ),
)  # fmt: skip
_GEMM = Rule(
    name="Gemm", decision="float", why="its transposed weight has no agreed channel axis", source=_TENSORRT,
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


_REST = (Rule(name="everything else", decision="float", why="no rule makes it INT8", source=_TENSORRT),)
_LAST_CONV = Rule(
    name="answer", decision="float", why="its output would have to be INT8, and is the graph's own", source=_ORT,
    operators=("Conv",), feeds_output=True,
)  # fmt: skip

TENSORRT_RULES = (
    *_NO_WEIGHT,
    _GEMM,
    _FLOAT_DEPTHWISE,
    *_SMALL,
    *_weighted(f"{_TENSORRT}: quantize all inputs of weighted operators"),
    *_REST,
)
ORT_X86_RULES = (*_NO_WEIGHT, _GEMM, _INT8_DEPTHWISE, *_SMALL, _LAST_CONV, *_weighted(_ORT), *_REST)
ORT_ARM_RULES = ORT_X86_RULES
# No rule for what loses much or gains little: where accuracy control is to find that out by itself.
EVERYTHING_RULES = (
    Rule(
        name="no activation", decision="float",
        why="reads images as they come, integers or constants: no float activation", source=_ONNX, activations=False,
    ),
    Rule(
        name="rearrangement", decision="float",
        why="moves values and computes nothing; what computes with them quantizes them", source=_ONNX,
        operators=(
            "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Slice", "Split", "Gather",
            "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
        ),
    ),
    Rule(
        name="shape", decision="float", why="reads how large a tensor is, none of its values", source=_ONNX,
        operators=("Shape", "Size"),
    ),
    _LAST_CONV,
    *_weighted(_ASKED),
    Rule(
        name="without weights", decision="int8",
        why="every float activation that it reads in INT8; constants stay float", source=_ASKED,
    ),
)  # fmt: skip
# Nothing in INT8: the whole table of a graph that is float16 where that holds.
FLOAT16_RULES = (
    Rule(
        name="asked for FP16", decision="float", why="half precision, and float32 where half precision fails",
        source="docs.nvidia.com/deeplearning/tensorrt, Strongly Typed Networks",
    ),
)  # fmt: skip
OPENVINO_RULES = (*_NO_WEIGHT, _GEMM, _INT8_DEPTHWISE, *_SMALL, *_weighted(f"{_OPENVINO}; {_OPENVINO_CONV}"), *_REST)
