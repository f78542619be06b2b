"""Builds the graphs of the tiny bundle, whole and in parts.

They are stored in ``data/``, so that the runtime's tests need no onnx. ``python -m support.tiny_graphs``, run in
``tests/``, writes them again; test_bundle.py checks that the stored files match.
"""

from __future__ import annotations

import onnx
from onnx import parser

from support.bundles import FORMATS, name_of
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
# Of any number of bands and either type of samples; the difference is divided by 2 to the number of bits, so that
# float16 holds features of multiples of 256 exactly.
_BANDS = """
tiny ({samples}[batch,64,64,{bands}] before, {samples}[batch,64,64,{bands}] after)
=> (float[batch,64,64] probability) {{
    first = Cast <to = 1> (before)
    second = Cast <to = 1> (after)
    difference = Sub (first, second)
    size = Abs (difference)
    mean = ReduceMean <axes = [3], keepdims = 0> (size)
    most = Constant <value = float {{{most}}}> ()
    probability = Div (mean, most)
}}"""
_BANDS_ENCODER = """
encoder ({samples}[batch,64,64,{bands}] image) => (float[batch,{bands},64,64] feature) {{
    single = Cast <to = 1> (image)
    planes = Transpose <perm = [0, 3, 1, 2]> (single)
    most = Constant <value = float {{{most}}}> ()
    feature = Div (planes, most)
}}"""
_BANDS_HEAD = """
head (float[batch,{bands},64,64] before_feature, float[batch,{bands},64,64] after_feature)
=> (float[batch,64,64] probability) {{
    difference = Sub (before_feature, after_feature)
    size = Abs (difference)
    probability = ReduceMean <axes = [1], keepdims = 0> (size)
}}"""
_OF_BANDS = {"float": _BANDS, "encoder": _BANDS_ENCODER, "head": _BANDS_HEAD}
GRAPHS = {
    **{
        f"{name_of(pixels)}_{part}.onnx": text.format(
            bands=pixels.bands, samples=pixels.samples, most=pixels.largest + 1
        )
        for pixels in FORMATS
        for part, text in _OF_BANDS.items()
    },
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
