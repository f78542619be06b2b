"""Tests that rewrites keep a graph's function and reduce its work, and leave tensors with other readers unchanged."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="rewriting needs the [export] extra")

import onnxruntime
from onnx import numpy_helper

from misgnet_calibration.onnx_graph import Graph
from misgnet_export.graph.algebra import rewrite
from misgnet_export.graph.algebra.attention import fold_attention_scale, merge_single_head
from misgnet_export.graph.algebra.classes import merge_classes
from misgnet_export.graph.algebra.linear import mlps_on_maps
from misgnet_export.graph.algebra.pixels import fold_normalisation
from misgnet_export.graph.algebra.resizes import interpolation, resizes_as_products
from misgnet_export.graph.algebra.tokens import tokens_channels_last

Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto]
Sizes = dict[str, tuple[int, ...]]

MLP = """
    turned = Transpose <perm = [0, 2, 1]> (hidden)
    map = Reshape (turned, to_map)
    deep = Conv <group = 8, pads = [1, 1, 1, 1]> (map, depth_w, depth_b)
    flat = Reshape (deep, to_flat)
    back = Transpose <perm = [0, 2, 1]> (flat)
    gelu = Gelu (back)
    second = MatMul (gelu, second_w)
    y = Add (second, second_b)
"""
MLP_HEAD = """
    first = MatMul (x, first_w)
    hidden = Add (first, first_b)
"""
MLP_SIZES: Sizes = {
    "first_w": (4, 8), "first_b": (8,), "depth_w": (8, 1, 3, 3), "depth_b": (8,), "second_w": (8, 4), "second_b": (4,),
}  # fmt: skip
RESHAPES = {"to_map": [-1, 8, 4, 6], "to_flat": [-1, 8, 24]}
ATTENTION = """
    q0 = MatMul (x, q_w)
    q1 = Add (q0, q_b)
    q2 = Reshape (q1, to_heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    scores = MatMul (q, k)
    scaled = Mul (scores, scale)
    y = Softmax <axis = -1> (scaled)
"""
HEAD = """
    q0 = MatMul (x, q_w)
    q1 = Add (q0, q_b)
    q2 = Reshape (q1, to_heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    scores = MatMul (q, k)
    weights = Softmax <axis = -1> (scores)
    mixed = MatMul (weights, v)
    turned = Transpose <perm = [0, 2, 1, 3]> (mixed)
    joined = Reshape (turned, to_tokens)
    last = MatMul (joined, p_w)
    y = Add (last, p_b)
"""
CLASSES = """
    logits = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    large = Resize <mode = "linear"> (logits, , scales)
    classes = Softmax <axis = 1> (large)
    y = Gather <axis = 1> (classes, one)
"""
MASK = """
    logits = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    large = Resize <mode = "linear"> (logits, , scales)
    changed = Gather <axis = 1> (large, one)
    unchanged = Gather <axis = 1> (large, zero)
    larger = Greater (changed, unchanged)
    y = Cast <to = 2> (larger)
"""
PIXELS = """
    a0 = Cast <to = 1> (before)
    a1 = Transpose <perm = [0, 3, 1, 2]> (a0)
    a2 = Mul (a1, gain)
    a3 = Sub (a2, offset)
    b0 = Cast <to = 1> (after)
    b1 = Transpose <perm = [0, 3, 1, 2]> (b0)
    b2 = Mul (b1, gain)
    b3 = Sub (b2, offset)
    both = Concat <axis = 0> (a3, b3)
    y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (both, w, c)
"""
GAIN = np.array([0.017, 0.018, 0.02], np.float32).reshape(1, 3, 1, 1)


def model_of(inputs: str, output: str, body: str, sizes: Sizes, **values: object) -> onnx.ModelProto:
    """Makes a graph of ``body`` with random constants of ``sizes`` and with ``values``; outputs name the nodes."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({output}) {{ {body} }}'
    )  # fmt: skip
    generator = np.random.default_rng(7)
    constants = {name: generator.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    constants |= {name: np.asarray(value) for name, value in values.items()}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for node in model.graph.node:
        node.name = f"part/{node.op_type}_{node.output[0]}"
    onnx.checker.check_model(model)
    return model


def mlp(extra: str = "", output: str = "float[B,24,4] y", body: str = MLP_HEAD + MLP) -> onnx.ModelProto:
    reshapes = {name: np.array(value, np.int64) for name, value in RESHAPES.items()}
    return model_of("float[B,24,4] x", output, body + extra, MLP_SIZES, **reshapes)


def attention(scale: float = 0.25, extra: str = "", output: str = "float[B,2,5,7] y") -> onnx.ModelProto:
    heads = np.array([-1, 5, 2, 16], np.int64)
    inputs, sizes = "float[B,5,8] x, float[B,2,16,7] k", {"q_w": (8, 32), "q_b": (32,)}
    return model_of(inputs, output, ATTENTION + extra, sizes, to_heads=heads, scale=np.float32(scale))


def single_head(heads: int = 1, body: str = HEAD, output: str = "float[B,5,8] y") -> onnx.ModelProto:
    width = 8 // heads
    inputs = f"float[B,5,8] x, float[B,{heads},{width},7] k, float[B,{heads},7,{width}] v"
    sizes = {"q_w": (8, 8), "q_b": (8,), "p_w": (8, 8), "p_b": (8,)}
    shapes = {"to_heads": np.array([-1, 5, heads, width], np.int64), "to_tokens": np.array([-1, 5, 8], np.int64)}
    return model_of(inputs, output, body, sizes, **shapes)


def two_classes(index: int = 1, extra: str = "", output: str = "float[B,8,8] y") -> onnx.ModelProto:
    values = {"scales": np.array([1, 1, 2, 2], np.float32), "one": np.int64(index)}
    return model_of("float[B,3,4,4] x", output, CLASSES + extra, {"w": (2, 3, 3, 3), "b": (2,)}, **values)


def class_mask(body: str = MASK, output: str = "uint8[B,8,8] y") -> onnx.ModelProto:
    values = {"scales": np.array([1, 1, 2, 2], np.float32), "one": np.int64(1), "zero": np.int64(0)}
    return model_of("float[B,3,4,4] x", output, body, {"w": (2, 3, 3, 3), "b": (2,)}, **values)


def resized(
    scales: tuple[float, ...] = (1, 1, 2, 2), shape: str = "B,1,5,6", attributes: str = 'mode = "linear"',
    inputs: str = "x, , scales",
) -> onnx.ModelProto:  # fmt: skip
    values = {"scales": np.array(scales, np.float32), "size": np.array([1, 1, 10, 12], np.int64)}
    return model_of(f"float[{shape}] x", "float[N,C,P,Q] y", f"y = Resize <{attributes}> ({inputs})", {}, **values)


def pixels(second_gain: np.ndarray = GAIN) -> onnx.ModelProto:
    body = PIXELS.replace("(b1, gain)", "(b1, gain2)")
    offset = np.array([2.1, 2.0, 1.8], np.float32).reshape(1, 3, 1, 1)
    inputs, sizes = "uint8[B,8,8,3] before, uint8[B,8,8,3] after", {"w": (4, 3, 3, 3), "c": (4,)}
    return model_of(inputs, "float[N,4,4,4] y", body, sizes, gain=GAIN, gain2=second_gain, offset=offset)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(3)
    feed = {}
    for entry in session.get_inputs():
        shape = [3 if not isinstance(size, int) else size for size in entry.shape]
        raw = generator.normal(size=shape) if entry.type == "tensor(float)" else generator.integers(0, 256, shape)
        feed[entry.name] = raw.astype(np.float32 if entry.type == "tensor(float)" else np.uint8)
    return session.run(None, feed)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def same(before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    return all(
        np.abs(a - b).max() < 2e-6 * max(1.0, np.abs(a).max()) for a, b in zip(run(before), run(after), strict=True)
    )


@pytest.mark.parametrize(
    ("make", "step"),
    [
        (mlp, tokens_channels_last), (mlp, rewrite), (attention, fold_attention_scale),
        (single_head, merge_single_head), (two_classes, merge_classes), (class_mask, merge_classes),
        (pixels, fold_normalisation), (resized, resizes_as_products),
    ],
)  # fmt: skip
def test_rewrite_keeps_the_function_and_changes_the_graph(make: Callable[[], onnx.ModelProto], step: Rewrite) -> None:
    model = make()
    untouched = model.SerializeToString()
    found = step(model)
    assert same(model, found)
    assert sorted(operators(found)) != sorted(operators(model)) or found.graph.node[2] != model.graph.node[2]
    assert model.SerializeToString() == untouched, "the input model stays unchanged"
    assert step(found).graph.node == found.graph.node, "a second rewrite finds nothing to do"


def test_tokens_become_a_map_by_reshape_and_four_axis_transpose() -> None:
    found = tokens_channels_last(mlp())
    perms = [list(node.attribute[0].ints) for node in found.graph.node if node.op_type == "Transpose"]
    assert perms == [[0, 3, 1, 2], [0, 2, 3, 1]]


def test_mlp_stays_a_map_between_its_narrow_ends() -> None:
    found = rewrite(mlp())
    assert operators(found) == ["Reshape", "Transpose", "Conv", "Conv", "Gelu", "Conv", "Transpose", "Reshape"]
    shapes = {item.name: list(item.dims) for item in found.graph.initializer}
    assert shapes["first_w_kernel"] == [8, 4, 1, 1] and shapes["second_w_kernel"] == [4, 8, 1, 1]
    assert "first_w" not in shapes, "unused constants are removed"
    assert {node.name.rpartition("/")[0] for node in found.graph.node} == {"part"}


@pytest.mark.parametrize("name", ["hidden", "deep", "back", "gelu", "first", "second"])
def test_mlp_with_other_readers_keeps_its_function(name: str) -> None:
    model = mlp(
        f"z = Neg ({name})",
        "float[B,24,4] y, float[B,U,V] z" if name != "deep" else "float[B,24,4] y, float[B,U,V,W] z",
    )
    found = rewrite(model)
    assert same(model, found)
    assert operators(found).count("MatMul") >= 1, "a linear layer with another reader is not rewritten"


def test_linear_layer_without_bias_or_with_computed_weight_is_kept() -> None:
    bare = mlp(body="hidden = MatMul (x, first_w)" + MLP)
    assert operators(rewrite(bare)).count("MatMul") == 1 and same(bare, rewrite(bare))
    computed = mlp(body="w = Neg (first_w)\n" + MLP_HEAD.replace("(x, first_w)", "(x, w)") + MLP)
    assert operators(mlps_on_maps(tokens_channels_last(computed))).count("MatMul") == 1


def test_power_of_two_scale_is_folded_into_the_query() -> None:
    found = fold_attention_scale(attention())
    assert "Mul" not in operators(found)
    assert np.array_equal(run(attention())[0], run(found)[0]), "folding it rounds nothing"


def test_other_scales_and_scores_with_other_readers_are_kept() -> None:
    for model in (
        attention(0.3), attention(-0.25),
        attention(extra="z = Neg (scores)", output="float[B,2,5,7] y, float[B,2,5,7] z"),
        attention(extra="z = Neg (q1)", output="float[B,2,5,7] y, float[B,5,32] z"),
    ):  # fmt: skip
        assert "Mul" in operators(fold_attention_scale(model))


def test_a_single_head_multiplies_the_tokens_only_twice() -> None:
    found = Graph(merge_single_head(single_head()))
    products = [node for node in found.nodes if node.op_type == "MatMul"]
    rows = [found.shape(node.output[0])[-2] for node in products]
    assert sorted(rows) == [1, 5, 5, 7, 8], "five rows are the tokens; the others are a bias, the values and a weight"
    assert "Transpose" not in [node.op_type for node in found.nodes]
    assert not [node for node in products if found.weight_of(node) and len(found.shape(found.weight_of(node))) == 2]


@pytest.mark.parametrize(
    "model",
    [
        single_head(2),
        *(single_head(body=f"{HEAD} z = Neg ({name})", output=f"float[B,5,8] y, float[{shape}] z") for name, shape in (
            ("q0", "B,5,8"), ("q1", "B,5,8"), ("q", "B,1,5,8"), ("scores", "B,1,5,7"), ("weights", "B,1,5,7"),
            ("mixed", "B,1,5,8"), ("joined", "B,5,8"), ("last", "B,5,8"),
        )),
        single_head(body=HEAD.replace("MatMul (x, q_w)", "MatMul (x, x_w)").replace("q0 =", "x_w = Neg (q_w)\nq0 =")),
        single_head(body=HEAD.replace("(last, p_b)", "(last, x)")),
        single_head(body=HEAD.replace("axis = -1", "axis = 2")),
    ],
)  # fmt: skip
def test_other_attention_is_kept(model: onnx.ModelProto) -> None:
    assert merge_single_head(model).graph.node == model.graph.node


def test_two_classes_are_merged_into_one_channel() -> None:
    found = merge_classes(two_classes())
    assert operators(found) == ["Conv", "Resize", "Sigmoid", "Squeeze"]
    assert sorted(list(item.dims) for item in found.graph.initializer if "difference" in item.name) == [
        [1],
        [1, 3, 3, 3],
    ]


def test_other_class_and_logits_with_other_readers_are_kept() -> None:
    for model in (two_classes(0), two_classes(extra="z = Neg (logits)", output="float[B,8,8] y, float[B,2,4,4] z")):
        assert "Softmax" in operators(merge_classes(model))


def test_mask_is_the_sign_of_the_difference_of_both_logits() -> None:
    found = merge_classes(class_mask())
    assert operators(found) == ["Conv", "Resize", "Squeeze", "Greater", "Cast"]
    assert 0.1 < run(found)[0].mean() < 0.9, "both classes occur"


def test_other_comparisons_of_both_logits_are_kept() -> None:
    reverse = class_mask(MASK.replace("(changed, unchanged)", "(unchanged, changed)"))
    also_read = [
        class_mask(f"{MASK} z = Neg ({name})", f"uint8[B,8,8] y, float[{shape}] z")
        for name, shape in (("large", "B,2,8,8"), ("changed", "B,8,8"), ("unchanged", "B,8,8"), ("logits", "B,2,4,4"))
    ]
    for model in (reverse, *also_read):
        assert merge_classes(model).graph.node == model.graph.node


@pytest.mark.parametrize("factors", [(2, 2), (4, 4), (8, 8), (2, 4), (1, 2), (3, 5)])
@pytest.mark.parametrize("shape", ["B,1,8,8", "B,2,5,7", "B,1,1,3", "B,2,33,1"])
def test_resize_by_whole_factors_is_two_products(factors: tuple[int, int], shape: str) -> None:
    model = resized((1, 1, *factors), shape)
    found = resizes_as_products(model)
    assert operators(found) == ["MatMul", "MatMul"]
    assert [node.name.rpartition("/")[0] for node in found.graph.node] == ["part", "part"]
    assert same(model, found)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_interpolation_is_exact_to_float32_rounding(factor: int) -> None:
    size = 9
    expected = np.zeros((size * factor, size))
    for i in range(size * factor):
        position = min(max(Fraction(2 * i + 1, 2 * factor) - Fraction(1, 2), Fraction(0)), Fraction(size - 1))
        low, part = position // 1, position % 1
        expected[i, low] += float(1 - part)
        expected[i, min(low + 1, size - 1)] += float(part)
    assert np.array_equal(interpolation(size, factor), expected.astype(np.float32))


def test_resizes_of_one_size_share_their_matrices() -> None:
    body = 'a = Resize <mode = "linear"> (x, , scales) n = Neg (x) y = Resize <mode = "linear"> (n, , scales)'
    scales = np.array([1, 1, 2, 2], np.float32)
    model = model_of("float[B,1,4,6] x", "float[B,1,8,12] a, float[B,1,8,12] y", body, {}, scales=scales)
    found = resizes_as_products(model)
    assert same(model, found)
    shapes = {item.name: list(item.dims) for item in found.graph.initializer}
    assert shapes == {"interpolation_rows_4_to_8": [8, 4], "interpolation_columns_6_to_12": [6, 12]}


@pytest.mark.parametrize(
    "model",
    [
        resized(shape="B,1,H,6"), resized(shape="B,1,5,W"), resized(shape="B,C,5,6"), resized(shape="B,3,5,6"),
        resized((1, 1, 1.5, 2)), resized((1, 1, 2, 0.5)), resized((1, 2, 2, 2)), resized((2, 1, 2, 2)),
        resized((1, 1, 2), "B,1,5"),
        resized(inputs="x, , , size"),
        resized((2, 2), attributes='mode = "linear", axes = [2, 3]'),
        resized(attributes='mode = "nearest"'), resized(attributes='mode = "cubic"'),
        resized(attributes='antialias = 0'),
        resized(attributes='mode = "linear", antialias = 1'),
        resized(attributes='mode = "linear", exclude_outside = 1'),
        resized(attributes='mode = "linear", coordinate_transformation_mode = "align_corners"'),
        resized(attributes='mode = "linear", coordinate_transformation_mode = "asymmetric"'),
        model_of("float[B,1,5,6] x, float[4] s", "float[N,C,P,Q] y", 'y = Resize <mode = "linear"> (x, , s)', {}),
    ],
)  # fmt: skip
def test_other_resizes_are_kept(model: onnx.ModelProto) -> None:
    assert resizes_as_products(model).graph.node == model.graph.node


def test_both_dates_are_joined_before_they_are_normalised() -> None:
    found = fold_normalisation(pixels())
    assert operators(found) == ["Cast", "Cast", "Concat", "Transpose", "Sub", "Conv"]


def test_dates_with_different_normalisation_are_kept_apart() -> None:
    assert "Mul" in operators(fold_normalisation(pixels(GAIN * 2)))
