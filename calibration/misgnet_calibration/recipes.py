"""What each kind of engine wants, as data.

Sources: onnxruntime's quantization guide (U8S8 on x86, 7-bit weights where VNNI may be missing; a convolution
runs in INT8 only with a quantized output); TensorRT's developer guide, "Working with quantized types"
(explicit Q/DQ, symmetric, zero point 0, weights per output channel, no quantized bias).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How the quantized places of a graph are written, and what the rest is computed in."""

    name: str
    symmetric_activations: bool  # INT8 with zero point 0; otherwise UINT8 with one
    weight_bits: int
    quantize_conv_outputs: bool
    quantize_bias: bool
    float16: bool


# 7-bit weights: without VNNI the CPU adds two UINT8 x INT8 products in 16 bits, which saturates with 8.
CPU = Recipe(
    "cpu",
    symmetric_activations=False,
    weight_bits=7,
    quantize_conv_outputs=True,
    quantize_bias=True,
    float16=False,
)
TENSORRT = Recipe(
    "tensorrt",
    symmetric_activations=True,
    weight_bits=8,
    quantize_conv_outputs=False,
    quantize_bias=False,
    float16=True,
)

# Modules whose numbers do not survive half precision: exponents of thousands, sums of 1e-20 that still decide
# a direction.
FLOAT32_SCOPES = ("MGLNet",)
FLOAT16_SAFE_MAGNITUDE = 512.0  # NVIDIA's quantization guides keep larger activations in FP32
