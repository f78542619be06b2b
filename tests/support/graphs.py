"""Makes small ONNX graphs with the structures that quantization has to handle, in a few dozen nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

SIDE = 32

_HEADER = '<ir_version: 10, opset_import: ["" : 20]>'

# Both dates pass the encoder as one batch of 2B and are then separated; the guide stays float32.
_TWO_BRANCH = """
two_branch (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,16,16] probability) {
    encoder_size = Shape <end = 1> (after)
    encoder_before = Cast <to = 1> (before)
    encoder_after = Cast <to = 1> (after)
    encoder_both = Concat <axis = 0> (encoder_before, encoder_after)
    encoder_nchw = Transpose <perm = [0, 3, 1, 2]> (encoder_both)
    encoder_scaled = Mul (encoder_nchw, gain)
    encoder_stem = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (encoder_scaled, stem_w, stem_b)
    encoder_stem_relu = Relu (encoder_stem)
    encoder_conv = Conv <pads = [1, 1, 1, 1]> (encoder_stem_relu, conv_w, conv_b)
    encoder_relu = Relu (encoder_conv)
    encoder_flat = Reshape (encoder_relu, to_tokens)
    encoder_tokens = Transpose <perm = [0, 2, 1]> (encoder_flat)
    encoder_norm = LayerNormalization <axis = -1> (encoder_tokens, norm_w, norm_b)
    encoder_product = MatMul (encoder_norm, linear_w)
    encoder_linear = Add (encoder_product, linear_b)
    encoder_gelu = Gelu (encoder_linear)
    encoder_second = MatMul (encoder_gelu, second_w)
    encoder_sum = Add (encoder_second, encoder_tokens)
    guide_first = Slice (encoder_sum, zero, encoder_size, zero)
    guide_last = Slice (encoder_sum, encoder_size, huge, zero)
    guide_difference = Sub (guide_last, guide_first)
    guide_norm = ReduceL2 <keepdims = 1> (guide_difference, last_axis)
    guide_safe = Clip (guide_norm, guard)
    guide_unit = Div (guide_difference, guide_safe)
    guide_out = MatMul (guide_unit, guide_w)
    decoder_one = MatMul (guide_difference, shared_w)
    decoder_two = MatMul (guide_out, shared_w)
    decoder_sum = Add (decoder_one, decoder_two)
    decoder_mean = ReduceMean <keepdims = 0> (decoder_sum, last_axis)
    decoder_map = Reshape (decoder_mean, to_map)
    probability = Sigmoid (decoder_map)
}
"""
# An encoder with two maps of both dates; the real network has three.
_TWO_STAGE = """
two_stage (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,32,32] probability) {
    encoder_first = Cast <to = 1> (before)
    encoder_first_nchw = Transpose <perm = [0, 3, 1, 2]> (encoder_first)
    encoder_first_scaled = Mul (encoder_first_nchw, gain)
    encoder_second = Cast <to = 1> (after)
    encoder_second_nchw = Transpose <perm = [0, 3, 1, 2]> (encoder_second)
    encoder_second_scaled = Mul (encoder_second_nchw, gain)
    encoder_both = Concat <axis = 0> (encoder_first_scaled, encoder_second_scaled)
    encoder_stem = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (encoder_both, stem_w)
    encoder_stem_relu = Relu (encoder_stem)
    encoder_fine = Conv <pads = [1, 1, 1, 1]> (encoder_stem_relu, fine_w)
    encoder_fine_map = Relu (encoder_fine)
    encoder_coarse = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (encoder_fine_map, coarse_w)
    encoder_coarse_gelu = Gelu (encoder_coarse)
    encoder_plane = Slice (encoder_coarse_gelu, zero, one, one)
    encoder_coarse_map = Mul (encoder_coarse_gelu, encoder_plane)
    guide_fine_dates = Reshape (encoder_fine_map, to_fine)
    guide_fine_before = Gather (guide_fine_dates, first)
    guide_fine_after = Gather (guide_fine_dates, second)
    guide_difference = Sub (guide_fine_after, guide_fine_before)
    encoder_coarse_dates = Reshape (encoder_coarse_map, to_coarse)
    decoder_coarse_before = Gather (encoder_coarse_dates, first)
    decoder_coarse_after = Gather (encoder_coarse_dates, second)
    decoder_difference = Sub (decoder_coarse_after, decoder_coarse_before)
    decoder_wide = Conv (decoder_difference, wide_w)
    decoder_large = DepthToSpace <blocksize = 2> (decoder_wide)
    decoder_sum = Add (decoder_large, guide_difference)
    decoder_four = Conv (decoder_sum, four_w)
    decoder_full = DepthToSpace <blocksize = 2> (decoder_four)
    decoder_map = Squeeze (decoder_full, one)
    probability = Sigmoid (decoder_map)
}
"""
_SCOPES = {"encoder": "backbone.block", "guide": "MGLNet0", "decoder": "decode", "probability": "head"}


def two_branch(seed: int = 0) -> onnx.ModelProto:
    """Makes a graph from uint8 (B, 32, 32, 3) of two dates to "probability", float32 (B, 16, 16).

    Five products and one convolution are large enough for INT8.
    """
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> NDArray[np.float32]:
        fan = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
        return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)

    constants: dict[str, Any] = {
        "gain": np.float32(1 / 64), "stem_w": weight(16, 3, 3, 3), "stem_b": weight(16, 1)[:, 0] / 4,
        "conv_w": weight(32, 16, 3, 3), "conv_b": weight(32, 1)[:, 0] / 4,
        "norm_w": np.ones(32, np.float32), "norm_b": np.zeros(32, np.float32),
        "linear_w": weight(32, 128), "linear_b": weight(128, 1)[:, 0] / 8, "second_w": weight(128, 32),
        "guard": np.float32(1e-12), "guide_w": weight(32, 32), "shared_w": weight(32, 32),
        "to_tokens": [0, 32, 256], "to_map": [0, 16, 16], "zero": [0], "huge": [2**62], "last_axis": [-1],
    }  # fmt: skip
    return parsed(_TWO_BRANCH, constants, _SCOPES)


def two_stage(seed: int = 0) -> onnx.ModelProto:
    """Makes a graph from uint8 (B, 32, 32, 3) of two dates to "probability", float32 (B, 32, 32).

    Its maps are (2B, 16, 16, 16) and (2B, 32, 8, 8).
    """
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants: dict[str, Any] = {
        "gain": np.float32(1 / 64), "stem_w": weight(16, 3, 3, 3), "fine_w": weight(16, 16, 3, 3),
        "coarse_w": weight(32, 16, 3, 3), "wide_w": weight(64, 32, 1, 1), "four_w": weight(4, 16, 1, 1),
        "zero": [0], "one": [1], "first": 0, "second": 1,
        "to_fine": [2, -1, 16, 16, 16], "to_coarse": [2, -1, 32, 8, 8],
    }  # fmt: skip
    return parsed(_TWO_STAGE, constants, _SCOPES)


def parsed(text: str, constants: dict[str, Any], scopes: dict[str, str] | None = None) -> onnx.ModelProto:
    """Parses onnx's text form; each node is named after its output, whose first word gives the scope."""
    model = onnx.parser.parse_model(_HEADER + text)
    for name, value in constants.items():
        array = np.array(value)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in model.graph.node:
        word = node.output[0].partition("_")[0]
        node.name = f"{(scopes or {}).get(word, word)}/{node.op_type}_{node.output[0]}"
    onnx.checker.check_model(model, full_check=True)
    return model


def images(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns random uint8 (count, 32, 32, 3) of two dates."""
    rng = np.random.default_rng(seed)
    before, after = rng.integers(0, 256, (2, count, SIDE, SIDE, 3), np.uint8)
    return before, after


def write_tiles(root: Path, count: int, seed: int = 0) -> Path:
    """Writes ``count`` image pairs of one tile each, with empty labels, to A/, B/ and label/."""
    for part, pixels in zip(("A", "B"), images(count, seed), strict=True):
        (root / part).mkdir(parents=True)
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(root / part / f"pair_{index:03}.png")
    (root / "label").mkdir()
    for index in range(count):
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(root / "label" / f"pair_{index:03}.png")
    return root


def run(model: onnx.ModelProto, feeds: dict, names: list[str] | None = None) -> list[np.ndarray]:
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    exposed.graph.output.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in names or () if n not in present)
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, feeds)


def feeds_of_two_branch() -> dict[str, np.ndarray]:
    before, after = images(4)
    return {"before": before, "after": after}


def dq_of(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if tensor in node.output)
