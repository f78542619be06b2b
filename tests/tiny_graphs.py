"""The two graphs of the tiny bundle. They lie in ``data/``, so that the runtime's tests need no onnx.

``python tests/tiny_graphs.py`` writes them again; test_bundle.py checks that they are these.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import parser

DATA = Path(__file__).with_name("data")
TILE = 64

_HEADER = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "tests/tiny_graphs.py">
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
_FLOAT = "{" + _DIFFERENCE + "probability = Div (mean, white) }"
_INT8 = (
    "{"
    + _DIFFERENCE
    + """
    exact = Div (mean, white)
    scale = Constant <value = float {0.0078125}> ()
    zero = Constant <value = uint8 {0}> ()
    coarse = QuantizeLinear (exact, scale, zero)
    probability = DequantizeLinear (coarse, scale, zero)
}"""
)
GRAPHS = {"tiny_float.onnx": _FLOAT, "tiny_int8.onnx": _INT8}


def tiny(name: str) -> onnx.ModelProto:
    """Mean absolute difference over the channels by 255; the INT8 one rounds it to 1/128."""
    model = parser.parse_model(_HEADER + GRAPHS[name])
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    for file in GRAPHS:
        (DATA / file).write_bytes(tiny(file).SerializeToString(deterministic=True))
