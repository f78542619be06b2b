"""Tests which sites are quantized, the Q/DQ nodes written there, and that onnxruntime runs them in INT8."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from misgnet_calibration.onnx_graph.edits import in_order
from misgnet_calibration.onnx_graph.graph import Graph, scope
from misgnet_calibration.quantizer.placement import activations, int8_share, quantizer_sites
from misgnet_calibration.quantizer.qdq import quantize_graph
from misgnet_calibration.quantizer.quantize import quantize
from misgnet_calibration.quantizer.recipes import CPU, TENSORRT, Recipe
from misgnet_calibration.quantizer.scales import activation_parameters, quantize_bias, quantize_weight, weight_scale
from misgnet_calibration.statistics.observers import Histogram, Range
from misgnet_runtime.errors import InputError
from support.graphs import dq_of, feeds_of_two_branch, parsed, run, two_branch

RECIPES = pytest.mark.parametrize("recipe", [CPU, TENSORRT], ids=lambda recipe: recipe.name)


def observed(model: onnx.ModelProto, feeds: dict) -> dict[str, Range]:
    graph = Graph(model)
    names = list(dict.fromkeys(n for recipe in (CPU, TENSORRT) for n in activations(quantizer_sites(graph, recipe))))
    ranges = {}
    for name, values in zip(names, run(model, feeds, names), strict=True):
        histogram = Histogram()
        histogram.observe(values)
        ranges[name] = histogram.percentile(1.0)
    return ranges


def test_macs_count_both_dates():
    graph = Graph(two_branch())
    costs = {node.output[0]: graph.macs(node) for node in graph.nodes if graph.weight_of(node)}
    assert costs["encoder_stem"] == 2 * 256 * 16 * 3 * 9
    assert costs["encoder_product"] == 2 * 256 * 32 * 128
    assert costs["decoder_one"] == 256 * 32 * 32
    sites = quantizer_sites(graph, CPU)
    assert int8_share(graph, sites) == pytest.approx(1 - costs["encoder_stem"] / sum(costs.values()))


def test_unknown_dimension_is_an_error():
    text = """g (float[batch,16] x) => (float[n,m] y) {
        indices = NonZero (x)  found = Cast <to = 1> (indices)
        turned = Transpose (found)  y = MatMul (turned, w)
    }"""
    graph = Graph(parsed(text, {"w": np.ones((2, 16), np.float32)}))
    with pytest.raises(InputError, match="shape of 'y' cannot be inferred"):
        graph.rows(graph.nodes[-1])


def test_equal_node_names_are_rejected():
    model = two_branch()
    model.graph.node[1].name = model.graph.node[0].name
    with pytest.raises(InputError, match="names"):
        Graph(model)


@RECIPES
def test_sites_are_the_large_products_and_convolutions(recipe: Recipe):
    sites = {p.node.rpartition("/")[2]: p for p in quantizer_sites(Graph(two_branch()), recipe)}
    assert list(sites) == [
        "Conv_encoder_conv", "MatMul_encoder_product", "MatMul_encoder_second", "MatMul_guide_out",
        "MatMul_decoder_one", "MatMul_decoder_two",
    ]  # fmt: skip
    conv = sites["Conv_encoder_conv"]
    assert (conv.weight_axis, sites["MatMul_guide_out"].weight_axis) == (0, 1)
    assert conv.bias == ("conv_b" if recipe is CPU else None)
    assert conv.output == "encoder_relu", "a LayerNorm reads its tokens"


def test_convolution_at_the_graph_output_stays_float_if_outputs_are_quantized():
    text = """g (float[batch,16,8,8] x) => (float[batch,16,8,8] y) { y = Conv (x, w) }"""
    graph = Graph(parsed(text, {"w": np.ones((16, 16, 1, 1), np.float32)}))
    assert quantizer_sites(graph, CPU) == []
    assert [p.activation for p in quantizer_sites(graph, TENSORRT)] == ["x"]  # an activation may be a graph input


@RECIPES
def test_quantized_graph_computes_nearly_the_same(recipe: Recipe):
    model, feeds = two_branch(), feeds_of_two_branch()
    quantized = quantize(model, recipe, observed(model, feeds), {})
    assert len(quantized.sites) == 6
    (expected,), (found,) = run(model, feeds), run(quantized.model, feeds)
    assert expected.std() > 0.02, "the output must depend on the images"
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).mean() < 0.05 * expected.std()
    assert np.abs(found - expected).max() < 0.3 * expected.std()


def test_cpu_graph_runs_in_int8(tmp_path):
    model, feeds = two_branch(), feeds_of_two_branch()
    quantized = quantize(model, CPU, observed(model, feeds), {})
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(quantized.model.SerializeToString(), options, ["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    kinds = Counter(node.op_type for node in optimized.graph.node)
    assert kinds["QLinearConv"] == 1
    assert kinds["MatMulIntegerToFloat"] + kinds["QLinearMatMul"] == 5
    assert kinds["Conv"] + kinds["FusedConv"] == 1, "only the stem, which has three channels"
    assert kinds["MatMul"] + kinds["FusedMatMul"] + kinds["Gemm"] == 0
    assert kinds["Relu"] <= 1, "the ReLU of the quantized convolution is fused as its lower bound"


def test_missing_range_is_named():
    graph = Graph(two_branch())
    with pytest.raises(InputError, match="'encoder_stem_relu'"):
        quantize_graph(two_branch(), quantizer_sites(graph, CPU), CPU, {})


SHARED = """
g (float[batch,16,8,8] x, float[batch,16,8,8] z) => (float[batch,16,8,8] y, float[batch,16,8,8] e) {
    one = Conv (x, w, b)
    two = Conv (x, w, b)
    three = Conv (z, w, b)
    a = Add (one, two)
    c = Add (a, three)
    sum_of_w = ReduceSum <keepdims = 0> (w)
    y = Add (c, sum_of_w)
    e = Relu (one)
}"""


def test_shared_activations_weights_and_biases_are_dequantized_as_needed():
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((16, 16, 1, 1)).astype(np.float32), "b": np.ones(16, np.float32)}
    x = rng.uniform(-1, 1, (2, 16, 8, 8)).astype(np.float32)
    model, feeds = parsed(SHARED, constants), {"x": x, "z": 3 * x}
    quantized = quantize_graph(model, quantizer_sites(Graph(model), CPU), CPU, observed(model, feeds))
    one, two, three = (dq_of(quantized, name) for name in ("one", "two", "three"))
    assert one.input[0] == two.input[0] != three.input[0]
    assert one.input[1] == two.input[1] == three.input[1]
    assert one.input[2] != three.input[2], "a bias has the scale of its own convolution"
    assert "w" in dq_of(quantized, "sum_of_w").input, "a float reader keeps the float weight"
    assert dq_of(quantized, "e").input[0] == dq_of(quantized, "a").input[0] == "one_dq"
    for expected, found in zip(run(model, feeds), run(quantized, feeds), strict=True):
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_node_order_is_topological_and_stable():
    nodes = list(two_branch().graph.node)
    assert in_order(nodes) == nodes
    moved = [*nodes[:3], *nodes[4:], nodes[3]]
    assert in_order(moved) == nodes


def test_channel_with_zero_weights_keeps_its_bias():
    weight = np.ones((16, 16, 1, 1), np.float32)
    weight[3] = 0
    bias = np.full(16, 40.0, np.float32)
    scale = weight_scale(weight, 0, CPU, bias, step=1e-5)
    quantized = quantize_bias(bias, scale * np.float32(1e-5))
    assert quantized * np.float64(scale) * 1e-5 == pytest.approx(bias, rel=1e-4)
    assert not quantize_weight(weight, scale, 0, CPU)[3].any()


@pytest.mark.parametrize("largest", [0.3, 1e-3, 1e-4])
def test_small_weights_use_all_quantized_values_in_float16(largest):
    weight = np.random.default_rng(0).uniform(-largest, largest, (64, 32)).astype(np.float32)
    scale = weight_scale(weight, 1, TENSORRT, None, 1.0)
    assert np.array_equal(scale, scale.astype(np.float16).astype(np.float32))
    back = quantize_weight(weight, scale, 1, TENSORRT) * scale
    assert np.abs(back - weight).max() <= max(0.51 * largest / 127, 2.0**-21)


def test_activation_parameters_represent_zero_exactly():
    step, zero = activation_parameters(Range(-1.0, 3.0), CPU)
    assert (step, zero.dtype, int(zero)) == (pytest.approx(4 / 255), np.uint8, 64)
    step, zero = activation_parameters(Range(-1.0, 3.0), TENSORRT)
    assert 3 / 127 <= step < 3.01 / 127
    assert (zero.dtype, int(zero)) == (np.int8, 0)
    for recipe in (CPU, TENSORRT):
        assert activation_parameters(Range(0.0, 0.0), recipe)[0] > 0


def test_new_nodes_have_the_scope_of_their_site():
    model, feeds = two_branch(), feeds_of_two_branch()
    quantized = quantize(model, TENSORRT, observed(model, feeds), {}).model
    scopes = {scope(n) for n in quantized.graph.node if n.op_type == "DequantizeLinear"}
    assert scopes == {"backbone.block", "MGLNet0", "decode"}
    assert numpy_helper.to_array(next(i for i in quantized.graph.initializer if i.name == "shared_w_levels")).any()
