"""Defines recipes, the requirements of each kind of engine, as data: number formats here, placement rules in ``rules``.

Sources: onnxruntime's quantization guide (U8S8 on x86, 7-bit weights where VNNI may be missing, S8S8 on ARM; a
convolution runs in INT8 only with a quantized output); TensorRT's developer guide, "Working with quantized types"
(explicit Q/DQ, symmetric, zero point 0, weights per output channel, no quantized bias); NVIDIA/TensorRT#1699 and
Model-Optimizer's ``graph_utils.py`` (an INT8 convolution writes INT8 only if its output is quantized too, as before a
LayerNorm); OpenVINO's guide to low
precision transformations (activations per tensor, either sign; weights per output channel and symmetric).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from misgnet_calibration.quantizer.rules import (
    FLOAT16_RULES,
    OPENVINO_RULES,
    ORT_ARM_RULES,
    ORT_X86_RULES,
    TENSORRT_RULES,
    Rule,
)

# Which quantized convolutions have INT8 outputs: none, all, or those whose reader is an INT8 operator or a LayerNorm.
ConvOutputs = Literal["float", "int8", "chained"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The quantization for one kind of engine: placement rules, number formats, and the precision of other operators.

    If no rule selects INT8, the graph has no quantizer sites, and ``weight_bits`` is that of its float16 weights.
    """

    name: str
    symmetric_activations: bool  # True: INT8 with zero point 0; False: UINT8 with a zero point
    weight_bits: int
    conv_outputs: ConvOutputs
    quantize_bias: bool
    float16: bool
    rules: tuple[Rule, ...]

    @property
    def int8(self) -> bool:
        """Whether any operator may be quantized."""
        return any(rule.decision == "int8" for rule in self.rules)

    @property
    def precision(self) -> str:
        """The precision as recorded in manifests: "int8", "int8+float16" or "float16"."""
        return "+".join(["int8"] * self.int8 + ["float16"] * self.float16)


# 7-bit weights: a CPU without VNNI adds two UINT8 x INT8 products in 16 bits, which saturates with 8-bit weights.
CPU = Recipe(
    name="cpu",
    symmetric_activations=False,
    weight_bits=7,
    conv_outputs="int8",
    quantize_bias=True,
    float16=False,
    rules=ORT_X86_RULES,
)
CPU_VNNI = replace(CPU, name="cpu-vnni", weight_bits=8)
CPU_ARM = Recipe(
    name="cpu-arm",
    symmetric_activations=True,
    weight_bits=8,
    conv_outputs="int8",
    quantize_bias=True,
    float16=False,
    rules=ORT_ARM_RULES,
)
OPENVINO = Recipe(
    name="openvino",
    symmetric_activations=False,
    weight_bits=7,  # as for ONNX Runtime: without VNNI, OpenVINO's kernels add in 16 bits as well
    conv_outputs="float",
    quantize_bias=False,
    float16=False,
    rules=OPENVINO_RULES,
)
TENSORRT = Recipe(
    name="tensorrt",
    symmetric_activations=True,
    weight_bits=8,
    conv_outputs="chained",
    quantize_bias=False,
    float16=True,
    rules=TENSORRT_RULES,
)
# TensorRT for RTX writes FP32 from INT8 convolutions in any case.
RTX = replace(TENSORRT, name="rtx", conv_outputs="float")
TENSORRT_FP16 = replace(TENSORRT, name="tensorrt-fp16", weight_bits=16, rules=FLOAT16_RULES)
RECIPES = (CPU, CPU_VNNI, CPU_ARM, OPENVINO, TENSORRT, RTX, TENSORRT_FP16)

FLOAT16_SAFE_MAGNITUDE = 512.0  # NVIDIA's quantization guides keep larger activations in FP32
