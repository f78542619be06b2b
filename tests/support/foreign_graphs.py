"""Makes small ONNX graphs with structures of networks that others wrote, which MISGNet does not have.

All map uint8 (B, 32, 32, 3) of two dates to "probability", float32 (B, 32, 32), as deployed graphs do.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from support.graphs import parsed

Names = Literal["paths", "numbers"]

_IO = "(uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,32,32] probability) {"
_DATES = """
    input_b = Cast <to = 1> (before)  input_bt = Transpose <perm = [0, 3, 1, 2]> (input_b)
    input_bs = Mul (input_bt, gain)  input_bn = Sub (input_bs, offset)
    input_a = Cast <to = 1> (after)  input_at = Transpose <perm = [0, 3, 1, 2]> (input_a)
    input_as = Mul (input_at, gain)  input_an = Sub (input_as, offset)
"""
# Both dates stacked as six channels; a BatchNorm that follows no convolution; transposed convolutions.
_UNET = f"""unet {_IO} {_DATES}
    down_both = Concat <axis = 1> (input_bn, input_an)
    down_norm = BatchNormalization (down_both, six, six, six, six)
    down_conv = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (down_norm, w6_16, b16)
    down_relu = Relu (down_conv)
    down_normed = BatchNormalization (down_relu, one16, b16, b16, one16)
    down_wide = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (down_normed, w16_32, b32)
    down_six = Clip (down_wide, zero, limit)
    down_pool = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (down_six)
    down_padded = Pad <mode = "reflect"> (down_pool, ring)
    down_deep = Conv <auto_pad = "VALID"> (down_padded, w32_32, b32)
    down_leaky = LeakyRelu <alpha = 0.1> (down_deep)
    up_first = ConvTranspose <strides = [2, 2]> (down_leaky, t32_32, b32)
    up_grouped = ConvTranspose <strides = [1, 1], pads = [1, 1, 1, 1], group = 4> (up_first, t32_8, b32)
    up_skip = Concat <axis = 1> (up_grouped, down_six)
    up_conv = Conv <pads = [1, 1, 1, 1]> (up_skip, w64_32, b32)
    up_prelu = PRelu (up_conv, slope)
    up_second = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (up_prelu, t32_16, b16)
    up_mean = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (up_second)
    head_conv = Conv (up_mean, w16_1, b1)
    head_map = Squeeze (head_conv, axis1)
    probability = Sigmoid (head_map)
}}"""
# Each date passes shared weights by itself; squeeze-and-excite, SiLU and their cheaper forms; pixel shuffle.
_MOBILE = f"""mobile {_IO} {_DATES}
    {{dates}}
    compare_difference = Sub (one_sum, two_sum)
    compare_size = Abs (compare_difference)
    compare_group = Conv <pads = [1, 1, 1, 1], group = 2> (compare_size, g32_16, b32)
    compare_hard = HardSwish (compare_group)
    compare_wide = Conv (compare_hard, w32_64p, b64)
    compare_large = DepthToSpace <blocksize = 2, mode = "CRD"> (compare_wide)
    compare_first, compare_second = Split <axis = 1, num_outputs = 2> (compare_large)
    compare_gate = HardSigmoid (compare_second)
    compare_gated = Mul (compare_first, compare_gate)
    head_conv = Conv (compare_gated, w8_1, b1)
    head_map = Squeeze (head_conv, axis1)
    probability = Sigmoid (head_map)
}}"""
_MOBILE_DATE = """
    NAME_stem = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (INPUT, w3_32, b32)
    NAME_gate = Sigmoid (NAME_stem)  NAME_silu = Mul (NAME_stem, NAME_gate)
    NAME_depth = Conv <pads = [1, 1, 1, 1], group = 32> (NAME_silu, d32, b32)
    NAME_swish = HardSwish (NAME_depth)
    NAME_pool = GlobalAveragePool (NAME_swish)
    NAME_squeeze = Conv (NAME_pool, w32_16p, b16)  NAME_act = Relu (NAME_squeeze)
    NAME_excite = Conv (NAME_act, w16_32p, b32)  NAME_weight = Sigmoid (NAME_excite)
    NAME_scaled = Mul (NAME_swish, NAME_weight)
    NAME_project = Conv (NAME_scaled, w32_32p, b32)
    NAME_sum = Add (NAME_project, NAME_stem)
"""
# Tokens: attention of several heads, LayerNorm in single steps and as one operator, Gemm, Einsum, Where.
_TOKENS = f"""tokens {_IO} {_DATES}
    encode_both = Concat <axis = 0> (input_bn, input_an)
    encode_patch = Conv <strides = [4, 4]> (encode_both, w3_32k4, b32)
    encode_parts = Reshape (encode_patch, to_groups)
    encode_instance = InstanceNormalization (encode_parts, four_one, four_zero)
    encode_map = Reshape (encode_instance, to_patches)
    encode_flat = Reshape (encode_map, to_channels)
    encode_tokens = Transpose <perm = [0, 2, 1]> (encode_flat)
    block_mean = ReduceMean (encode_tokens, last)  block_centred = Sub (encode_tokens, block_mean)
    block_square = Pow (block_centred, two)  block_variance = ReduceMean (block_square, last)
    block_guarded = Add (block_variance, epsilon)  block_deviation = Sqrt (block_guarded)
    block_normed = Div (block_centred, block_deviation)
    attend_product = MatMul (block_normed, m32_96)  attend_linear = Add (attend_product, b96)
    attend_q, attend_k, attend_v = Split <axis = 2, num_outputs = 3> (attend_linear)
    attend_qh = Reshape (attend_q, to_heads)  attend_qt = Transpose <perm = [0, 2, 1, 3]> (attend_qh)
    attend_kh = Reshape (attend_k, to_heads)  attend_kt = Transpose <perm = [0, 2, 3, 1]> (attend_kh)
    attend_vh = Reshape (attend_v, to_heads)  attend_vt = Transpose <perm = [0, 2, 1, 3]> (attend_vh)
    attend_scores = MatMul (attend_qt, attend_kt)  attend_scaled = Mul (attend_scores, root)
    attend_limited = Greater (attend_scaled, limit)  attend_kept = Where (attend_limited, limit, attend_scaled)
    attend_weights = Softmax <axis = -1> (attend_kept)
    attend_mixed = Einsum <equation = "bhij,bhjd->bihd"> (attend_weights, attend_vt)
    attend_join = Reshape (attend_mixed, to_tokens)
    attend_out = MatMul (attend_join, m32_32)  attend_bias = Add (attend_out, b32)
    attend_sum = Add (attend_bias, encode_tokens)
    mlp_norm = LayerNormalization <axis = -1> (attend_sum, one32, b32)
    mlp_rows = Reshape (mlp_norm, to_rows)
    mlp_wide = Gemm <transB = 1> (mlp_rows, g96_32, b96)
    mlp_tanh = Tanh (mlp_wide)
    mlp_narrow = Gemm <alpha = 0.5> (mlp_tanh, m96_32, b32)
    mlp_tokens = Reshape (mlp_narrow, to_tokens)
    mlp_turned = Transpose <perm = [0, 2, 1]> (mlp_tokens)
    mlp_map = Reshape (mlp_turned, to_patches)
    mlp_before, mlp_after = Split <axis = 0, num_outputs = 2> (mlp_map)
    head_difference = Sub (mlp_before, mlp_after)
    head_conv = Conv (head_difference, w32_1, b1)
    head_large = Resize <mode = "cubic", cubic_coeff_a = -0.75> (head_conv, , scales4)
    head_map = Squeeze (head_large, axis1)
    probability = Sigmoid (head_map)
}}"""
# Features of the second date are moved by a predicted flow, as in networks that register the dates.
_FLOW = f"""flow {_IO} {_DATES}
    one_conv = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (input_bn, w3_32, b32)  one_elu = Elu (one_conv)
    two_conv = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (input_an, w3_32, b32)  two_elu = Elu (two_conv)
    flow_both = Concat <axis = 1> (one_elu, two_elu)
    flow_conv = Conv <pads = [1, 1, 1, 1]> (flow_both, w64_2, b2)
    flow_small = Tanh (flow_conv)  flow_scaled = Mul (flow_small, tenth)
    flow_turned = Transpose <perm = [0, 2, 3, 1]> (flow_scaled)
    flow_line = Range (zero, sixteen, step)  flow_unit = Mul (flow_line, eighth)  flow_centred = Sub (flow_unit, step)
    flow_rows = Reshape (flow_centred, to_rows)  flow_columns = Reshape (flow_centred, to_columns)
    flow_x = Expand (flow_columns, to_grid)  flow_y = Expand (flow_rows, to_grid)
    flow_grid = Concat <axis = 3> (flow_x, flow_y)
    flow_coordinates = Add (flow_turned, flow_grid)
    flow_warped = GridSample <mode = "linear", padding_mode = "border"> (two_elu, flow_coordinates)
    head_difference = Sub (one_elu, flow_warped)
    head_square = Mul (head_difference, head_difference)
    head_energy = ReduceMean <keepdims = 1> (head_square, axis1)
    head_scaled = Mul (head_difference, head_energy)
    head_conv = Conv <pads = [1, 1, 1, 1]> (head_scaled, w32_32, b32)
    head_half = Resize <mode = "nearest"> (head_conv, , halves)
    head_full = Resize <mode = "linear"> (head_half, , scales4)
    head_last = Conv (head_full, w32_1, b1)
    head_map = Squeeze (head_last, axis1)
    probability = Sigmoid (head_map)
}}"""
# Two classes, resized to stated sizes; normalised dates that more than one operator reads; one gain for all bands.
_CLASSES = f"""classes {_IO} {_DATES}
    encode_both = Concat <axis = 0> (input_bn, input_an)
    encode_stem = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (encode_both, w3_32, b32)
    encode_relu = Relu (encode_stem)
    encode_dates = Reshape (encode_relu, to_dates)
    encode_first = Gather <axis = 0> (encode_dates, first)
    encode_second = Gather <axis = 0> (encode_dates, second)
    head_raw = Sub (input_bn, input_an)
    head_pool = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (head_raw)
    head_all = Concat <axis = 1> (encode_first, encode_second, head_pool)
    head_logits = Conv <pads = [1, 1, 1, 1]> (head_all, w67_2, b2)
    head_large = Resize <mode = "linear", axes = [2, 3]> (head_logits, , , full_sizes)
    head_softmax = Softmax <axis = 1> (head_large)
    probability = Gather <axis = 1> (head_softmax, second)
}}"""

FOREIGN = ("unet", "mobile", "tokens", "flow", "classes")


def foreign(name: str, names: Names = "paths", seed: int = 0) -> onnx.ModelProto:
    """Makes one of FOREIGN; its nodes are named as by PyTorch's exporter: with module paths, or with numbers only."""
    rng = np.random.default_rng([seed, FOREIGN.index(name)])

    def weight(*shape: int, fan: int | None = None) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) / np.sqrt(fan or np.prod(shape[1:]))).astype(np.float32)

    constants: dict[str, Any] = {
        "gain": np.float32(1 / 64) if name == "classes" else np.full((1, 3, 1, 1), 1 / 64, np.float32),
        "offset": np.full((1, 3, 1, 1), 2, np.float32), "six": np.ones(6, np.float32),
        "one16": np.ones(16, np.float32), "one32": np.ones(32, np.float32), "zero": np.float32(0),
        "limit": np.float32(6 if name == "unet" else 2), "ring": [0, 0, 1, 1, 0, 0, 1, 1], "slope": weight(32, 1, 1),
        **{f"b{n}": weight(n, fan=16) for n in (1, 2, 16, 32, 64, 96)},
        "w6_16": weight(16, 6, 3, 3), "w16_32": weight(32, 16, 3, 3), "w32_32": weight(32, 32, 3, 3),
        "w64_32": weight(32, 64, 3, 3), "t32_32": weight(32, 32, 2, 2, fan=32), "t32_8": weight(32, 8, 3, 3, fan=72),
        "t32_16": weight(32, 16, 4, 4, fan=128), "w16_1": weight(1, 16, 1, 1), "w32_1": weight(1, 32, 1, 1),
        "w8_1": weight(1, 8, 1, 1), "w3_32": weight(32, 3, 3, 3), "d32": weight(32, 1, 3, 3),
        "w32_16p": weight(16, 32, 1, 1), "w16_32p": weight(32, 16, 1, 1), "w32_32p": weight(32, 32, 1, 1),
        "g32_16": weight(32, 16, 3, 3), "w32_64p": weight(64, 32, 1, 1), "w3_32k4": weight(32, 3, 4, 4),
        "w64_2": weight(2, 64, 3, 3), "w67_2": weight(2, 67, 3, 3),
        "four_one": np.ones(4, np.float32), "four_zero": np.zeros(4, np.float32), "two": np.float32(2),
        "epsilon": np.float32(1e-5), "root": np.float32(0.5), "m32_96": weight(32, 96, fan=32),
        "m32_32": weight(32, 32), "g96_32": weight(96, 32), "m96_32": weight(96, 32, fan=96),
        "tenth": np.float32(0.1), "sixteen": np.float32(16), "step": np.float32(1), "eighth": np.float32(2 / 15),
        "scales4": np.float32([1, 1, 4, 4]), "axis1": [1], "last": [-1], "first": 0, "second": 1,
        "to_groups": [0, 4, -1], "to_patches": [-1, 32, 8, 8], "to_channels": [0, 32, 64], "to_heads": [0, 64, 4, 8],
        "to_tokens": [-1, 64, 32], "to_columns": [1, 1, 16, 1], "to_grid": [1, 16, 16, 1],
        "to_rows": [1, 16, 1, 1] if name == "flow" else [-1, 32], "to_dates": [2, -1, 32, 16, 16],
        "halves": np.float32([1, 1, 0.5, 0.5]), "full_sizes": [32, 32],
    }  # fmt: skip
    dates = "".join(_MOBILE_DATE.replace("NAME", n).replace("INPUT", x) for n, x in _MOBILE_INPUTS.items())
    text = {"unet": _UNET, "mobile": _MOBILE.replace("{dates}", dates), "tokens": _TOKENS, "flow": _FLOW}
    text = text.get(name, _CLASSES)
    model = parsed(text, {key: value for key, value in constants.items() if _is_read(text, key)})
    for index, node in enumerate(model.graph.node):
        module, _, part = node.output[0].partition("_")
        path = f"/{module}/{module}.{len(part) % 2}/{part}/{node.op_type}" if part else f"/{node.op_type}"
        node.name = path if names == "paths" else f"{node.op_type}_{index}"
    return model


_MOBILE_INPUTS = {"one": "input_bn", "two": "input_an"}


def _is_read(text: str, name: str) -> bool:
    return any(f"{before}{name}{after}" in text for before in "( " for after in ",)")
