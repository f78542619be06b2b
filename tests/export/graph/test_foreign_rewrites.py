"""Tests that simplification and rewrites leave the function of graphs that others wrote as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="export needs the [export] extra")

import onnxsim

from misgnet_calibration.onnx_graph import Graph
from misgnet_calibration.quantizer.quantize import quantize
from misgnet_calibration.quantizer.recipes import RTX, TENSORRT_FP16, Recipe
from misgnet_calibration.statistics.observers import Range
from misgnet_export.graph.algebra import GPU_REWRITES, REWRITES, rewrite
from misgnet_export.graph.algebra.rewriting import Rewriting
from misgnet_export.graph.simplify import simplify_graph, with_shapes
from misgnet_runtime.engines.tensorrt import PlanOptions, compile_plan
from misgnet_runtime.errors import GateFailed
from support.foreign_graphs import FOREIGN, foreign
from support.graphs import images, parsed, run

EVERY_GRAPH = pytest.mark.parametrize("name", FOREIGN)


def outputs(model: onnx.ModelProto) -> np.ndarray:
    before, after = images(3)
    return run(model, {"before": before, "after": after})[0]


@EVERY_GRAPH
@pytest.mark.parametrize("names", ["paths", "numbers"])
@pytest.mark.parametrize("for_gpu", [False, True], ids=["cpu", "gpu"])
def test_simplified_and_rewritten_graph_computes_the_same(name: str, names: Any, for_gpu: bool) -> None:
    model = foreign(name, names)
    simplified = simplify_graph(model, norms_fold=False)
    rewritten = rewrite(simplified, for_gpu=for_gpu)
    expected = outputs(model)
    assert np.abs(outputs(simplified) - expected).max() < 1e-5
    assert np.abs(outputs(rewritten) - expected).max() < 1e-5
    Graph(rewritten)  # every node has a name of its own


@EVERY_GRAPH
@pytest.mark.parametrize("step", dict.fromkeys((*REWRITES, *GPU_REWRITES)), ids=lambda step: step.__name__)
def test_each_rewrite_alone_computes_the_same(name: str, step: Any) -> None:
    model = with_shapes(foreign(name))
    assert np.abs(outputs(step(model)) - outputs(model)).max() < 1e-5


def computes_the_same(text: str, constants: dict[str, Any], *shape: int, changes: bool | None = False) -> None:
    """Checks every rewrite of the graph in ``text`` on a random input x; and whether any of them finds something.

    None for ``changes``: depends on the engine.
    """
    model = with_shapes(parsed(text, constants))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = run(model, {"x": x})
    for for_gpu in (False, True):
        found = rewrite(model, for_gpu=for_gpu)
        for one, other in zip(expected, run(found, {"x": x}), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        assert changes is None or (found.graph.node != model.graph.node) is changes


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_a_scaled_convolution_with_a_bias_keeps_its_scale() -> None:
    """The scale cannot move into the weight alone: the convolution adds a bias before the Add."""
    text = """g (float[batch,4,2,4] x) => (float[batch,4,2,2] y) {
        q = Conv (x, w, c)  p = Add (q, d)  s = MatMul (p, k)  m = Mul (s, half)  y = Softmax <axis = -1> (m) }"""
    constants = {"w": weight(4, 4, 1, 1), "c": weight(4), "d": weight(2, 4), "k": weight(4, 2), "half": np.float32(0.5)}
    computes_the_same(text, constants, 3, 4, 2, 4)


def test_products_that_share_a_weight_and_scale_it_differently() -> None:
    text = """g (float[batch,8,4] x) => (float[batch,8,8] y, float[batch,8,8] z) {
        t = Transpose <perm = [0, 2, 1]> (x)
        q = MatMul (x, w)  p = Add (q, d)  s = MatMul (p, t)  m = Mul (s, half)  y = Softmax <axis = -1> (m)
        q2 = MatMul (x, w)  p2 = Add (q2, d)  s2 = MatMul (p2, t)  m2 = Mul (s2, quarter)
        z = Softmax <axis = -1> (m2) }"""
    constants = {"w": weight(4, 4), "d": weight(4), "half": np.float32(0.5), "quarter": np.float32(0.25)}
    computes_the_same(text, constants, 3, 8, 4, changes=True)


def test_a_second_axis_that_is_the_batch_is_no_single_head() -> None:
    """Tokens first, as nn.MultiheadAttention has them: for one pair, the batch looks like one head."""
    text = """g (float[8,batch,4] x) => (float[8,batch,4] y) {
        q = MatMul (x, w)  p = Add (q, d)  r = Reshape (p, shape)  t = Transpose <perm = [0, 2, 1, 3]> (r)
        k = Transpose <perm = [0, 2, 3, 1]> (r)
        s = MatMul (t, k)  a = Softmax <axis = -1> (s)  m = MatMul (a, t)
        b = Transpose <perm = [0, 2, 1, 3]> (m)  j = Reshape (b, back)  o = MatMul (j, w)  y = Add (o, d) }"""
    constants = {"w": weight(4, 4), "d": weight(4), "shape": [8, 1, -1, 4], "back": [8, -1, 4]}
    computes_the_same(text, constants, 8, 3, 4)


def test_linear_layers_whose_bias_differs_by_position_stay() -> None:
    text = """g (float[batch,16,4] x) => (float[batch,4,4,4] y) {
        q = MatMul (x, w)  p = Add (q, d)  r = Reshape (p, grid)  t = Transpose <perm = [0, 3, 1, 2]> (r)
        y = Conv <group = 4, pads = [1, 1, 1, 1]> (t, k) }"""
    constants = {"w": weight(4, 4), "d": weight(16, 4), "k": weight(4, 1, 3, 3), "grid": [-1, 4, 4, 4]}
    computes_the_same(text, constants, 3, 16, 4)


def test_a_reshape_that_mixes_channels_and_positions_stays() -> None:
    text = """g (float[batch,16,4] x) => (float[batch,8,2,4] y, float[batch,16,4] z) {
        q = MatMul (x, w)  p = Add (q, d)  r = Reshape (p, grid)  t = Transpose <perm = [0, 3, 1, 2]> (r)
        y = Conv <group = 8, pads = [1, 1, 1, 1]> (t, k)
        u = Transpose <perm = [0, 2, 1]> (x)  z = Reshape (u, mixed) }"""
    constants = {
        "w": weight(4, 4), "d": weight(4), "k": weight(8, 1, 3, 3), "grid": [-1, 2, 4, 8], "mixed": [-1, 16, 4],
    }  # fmt: skip
    computes_the_same(text, constants, 3, 16, 4)


def test_attention_with_narrow_heads_is_not_written_as_sums() -> None:
    """The terms of such sums would be a map of all pairs of tokens for each of the 8 values of a head."""
    text = """g (float[batch,2,8,32] x) => (float[batch,2,32,32] y) {
        t = Transpose <perm = [0, 1, 3, 2]> (x)  y = MatMul (t, x) }"""
    computes_the_same(text, {}, 3, 2, 8, 32)


GROUPED_CLASSES = """g (float[batch,8,4,4] x) => (float[batch,8,8] y) {
    c = Conv <group = GROUPS> (x, w, b)  r = Resize <mode = "linear"> (c, , FORM)
    s = Softmax <axis = 1> (r)  y = Gather <axis = 1> (s, one) }"""


@pytest.mark.parametrize("form", ["scales", "scales, ", ", sizes"], ids=["scales", "empty-sizes", "sizes"])
@pytest.mark.parametrize("groups", [1, 2])
def test_two_classes_become_one_channel_only_in_one_group(groups: int, form: str) -> None:
    text = GROUPED_CLASSES.replace("GROUPS", str(groups)).replace("FORM", form)
    if "sizes" in form:
        text = text.replace("batch", "1")
    constants = {
        "w": weight(2, 8 // groups, 1, 1), "b": weight(2), "scales": np.float32([1, 1, 2, 2]), "one": 1,
        "sizes": [1, 2, 8, 8],
    }  # fmt: skip
    used = {name: value for name, value in constants.items() if name in text}
    computes_the_same(text, used, 1, 8, 4, 4, changes=None)
    merged = rewrite(with_shapes(parsed(text, used)), for_gpu=True).graph.node
    assert ("Sigmoid" in {node.op_type for node in merged}) is (groups == 1)


def test_resize_to_the_size_of_another_map_becomes_one_by_scales() -> None:
    """As exporters write F.interpolate(x, size=skip.shape[2:])."""
    text = """g (float[batch,4,4,4] x) => (float[batch,4,8,16] y) {
        large = Conv <pads = [4, 8, 0, 4]> (x, w)  shape = Shape (large)  hw = Slice (shape, two, four)
        own = Shape (x)  bc = Slice (own, zero, two)  sizes = Concat <axis = 0> (bc, hw)
        small = Resize <mode = "linear"> (x, , , sizes)  y = Add (small, large) }"""
    model = with_shapes(parsed(text, {"w": weight(4, 4, 1, 1), "zero": [0], "two": [2], "four": [4]}))
    x = np.random.default_rng(1).standard_normal((3, 4, 4, 4)).astype(np.float32)
    found = rewrite(model)
    np.testing.assert_allclose(run(found, {"x": x})[0], run(model, {"x": x})[0], atol=1e-6)
    resize = next(node for node in found.graph.node if node.op_type == "Resize")
    assert Graph(found).constant(resize.input[2]).tolist() == [1, 1, 2, 4]
    assert "Concat" not in {node.op_type for node in found.graph.node}


def test_resize_by_a_factor_that_float32_rounds_keeps_its_sizes() -> None:
    text = """g (float[batch,4,6,6] x) => (float[batch,4,7,7] y) {
        y = Resize <mode = "linear", axes = [2, 3]> (x, , , sizes) }"""
    computes_the_same(text, {"sizes": [7, 7]}, 3, 4, 6, 6)


def test_graphs_of_old_operator_sets_are_not_rewritten() -> None:
    """Until opset 12, a Softmax along axis 1 ran over all axes from 1 on."""
    model = foreign("classes")
    old = onnx.ModelProto()
    old.CopyFrom(model)
    old.opset_import[0].version = 17
    assert [n.op_type for n in rewrite(with_shapes(model)).graph.node] != [n.op_type for n in model.graph.node]
    old_nodes = [onnx.helper.make_node("Softmax", ["x"], ["y"], "softmax", axis=1)]
    graph = onnx.helper.make_graph(
        old_nodes, "g", [onnx.helper.make_tensor_value_info("x", 1, ["b", 2, 4])],
        [onnx.helper.make_tensor_value_info("y", 1, ["b", 2, 4])],
    )  # fmt: skip
    small = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=8)
    assert rewrite(small).graph.node == small.graph.node


def test_constants_of_one_name_and_other_values_get_other_names() -> None:
    rewriting = Rewriting(parsed("g (float[1] x) => (float[1] y) { y = Relu (x) }", {}))
    names = [rewriting.constant("size", np.array(value)) for value in (1, 2, 1, 2, 3)]
    assert names == ["size", "size_1", "size", "size_1", "size_2"]


def test_batch_norms_that_remain_are_an_error_only_for_misgnet() -> None:
    model = foreign("unet")
    left = [node for node in simplify_graph(model, norms_fold=False).graph.node if node.op_type == "BatchNormalization"]
    assert len(left) == 2
    with pytest.raises(GateFailed, match="batch norms were not folded: 2 remain"):
        simplify_graph(model)


def test_constants_become_initializers() -> None:
    text = """g (float[batch,2] x) => (float[batch,2] y) {
        a = Constant <value = float[2] {1.0, 2.0}> ()  b = Constant <value_float = 3.0> ()
        s = Mul (x, a)  y = Add (s, b) }"""
    found = simplify_graph(parsed(text, {}))
    assert [node.op_type for node in found.graph.node] == ["Mul", "Add"]
    assert run(found, {"x": np.ones((1, 2), np.float32)})[0].tolist() == [[4, 5]]


def test_a_failure_of_onnxsim_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    with pytest.raises(GateFailed, match=r"^onnxsim cannot simplify the graph: no such operator; export it .* form$"):
        simplify_graph(foreign("unet"))


def test_a_graph_with_a_shape_that_depends_on_values_passes() -> None:
    text = """g (float[batch,4] x) => (int64[2,n] y) { y = NonZero (x) }"""
    assert with_shapes(parsed(text, {})).graph.node[0].op_type == "NonZero"


@EVERY_GRAPH
@pytest.mark.parametrize("recipe", [
    pytest.param(RTX, id="int8"), pytest.param(TENSORRT_FP16, id="fp16", marks=pytest.mark.slow),
])  # fmt: skip
def test_tensorrt_for_rtx_compiles_the_graph(name: str, recipe: Recipe) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    model = rewrite(simplify_graph(foreign(name), norms_fold=False), for_gpu=True)
    tensors = {name: Range(-4.0, 4.0) for node in model.graph.node for name in (*node.input, *node.output)}
    graph = quantize(model, recipe, tensors, {}).model
    plan = compile_plan(graph.SerializeToString(), PlanOptions(vendor="rtx", compute_capabilities=("sm86",)))
    assert len(plan.data) > 1000
