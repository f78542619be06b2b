"""Builds the graphs of the tiny bundle, whole and in parts.

They are stored in ``data/``, so that the runtime's tests need no onnx. ``python -m support.tiny_graphs``, run in
``tests/``, writes them again; test_bundle.py checks that the stored files match.
"""

from __future__ import annotations

import onnx
from onnx import parser

from support.paths import DATA

TILE = 64

_HEADER = '<ir_version: 8, opset_import: ["" : 17], producer_name: "tests/tiny_graphs.py">'
_WHOLE = """
tiny (uint8[batch,64,64,3] before, uint8[batch,64,64,3] after) => (float[batch,64,64] probability)
"""
_DIFFERENCE = """
    first = Cast <to = 1> (before)
    second = Cast <to = 1> (after)
    difference = Sub (first, second)
    size = Abs (difference)
    mean = ReduceMean <axes = [3], keepdims = 0> (size)
    white = Constant <value = float {255}> ()
"""
_EXACT = "{" + _DIFFERENCE + "probability = Div (mean, white) }"
_COARSE = """
    scale = Constant <value = float {0.0078125}> ()
    zero = Constant <value = uint8 {0}> ()
    coarse = QuantizeLinear (exact, scale, zero)
    probability = DequantizeLinear (coarse, scale, zero)
}"""
_ROUNDED = "{" + _DIFFERENCE + "exact = Div (mean, white)" + _COARSE
# The first feature is red and green, the second is blue: integers up to 255, which float16 holds exactly.
_ENCODER = """
encoder (uint8[batch,64,64,3] image) => (float[batch,2,64,64] feature1, float[batch,1,64,64] feature2) {
    single = Cast <to = 1> (image)
    planes = Transpose <perm = [0, 3, 1, 2]> (single)
    counts = Constant <value = int64[2] {2, 1}> ()
    feature1, feature2 = Split <axis = 1> (planes, counts)
}"""
_HEAD = """
head (
    float[batch,2,64,64] before_feature1, float[batch,1,64,64] before_feature2,
    float[batch,2,64,64] after_feature1, float[batch,1,64,64] after_feature2
) => (float[batch,64,64] probability) {
    first = Concat <axis = 1> (before_feature1, before_feature2)
    second = Concat <axis = 1> (after_feature1, after_feature2)
    difference = Sub (first, second)
    size = Abs (difference)
    mean = ReduceMean <axes = [1], keepdims = 0> (size)
    white = Constant <value = float {255}> ()
"""
GRAPHS = {
    "tiny_float.onnx": _WHOLE + _EXACT,
    "tiny_int8.onnx": _WHOLE + _ROUNDED,
    "tiny_encoder.onnx": _ENCODER,
    "tiny_float_head.onnx": _HEAD + "probability = Div (mean, white) }",
    "tiny_int8_head.onnx": _HEAD + "exact = Div (mean, white)" + _COARSE,
}


def tiny(name: str) -> onnx.ModelProto:
    """Builds a graph of the mean absolute difference over the channels / 255; the INT8 graph rounds it to 1/128.

    The encoder and a head together compute the same as the whole graph.
    """
    model = parser.parse_model(_HEADER + GRAPHS[name])
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    for file in GRAPHS:
        (DATA / file).write_bytes(tiny(file).SerializeToString(deterministic=True))
