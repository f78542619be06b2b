"""Tests --placement all: every operator with float activations in INT8, in rules, graphs and manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.checks import check_tensorrt_rules
from misgnet_calibration.quantizer.float16 import to_float16
from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_calibration.quantizer.placement import OperandSite, activations, placements, quantizer_sites, weighted
from misgnet_calibration.quantizer.qdq import quantize_graph
from misgnet_calibration.quantizer.quantize import QuantizedGraph, quantize
from misgnet_calibration.quantizer.recipes import CPU, OPENVINO, RECIPES, TENSORRT, Recipe
from misgnet_calibration.quantizer.rules import EVERYTHING_RULES
from misgnet_calibration.statistics.observers import Range
from misgnet_export.pipeline.quantization_record import placement_entries
from misgnet_runtime.bundle.quantization import Steps
from misgnet_runtime.engines.tensorrt import PlanOptions, compile_plan
from misgnet_runtime.errors import GateFailed
from support.graphs import dq_of, feeds_of_two_branch, parsed, run, two_branch

ALL_CPU, ALL_TENSORRT = (replace(recipe, rules=EVERYTHING_RULES) for recipe in (CPU, TENSORRT))
EVERY = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
BOTH = pytest.mark.parametrize("recipe", [ALL_CPU, ALL_TENSORRT], ids=lambda recipe: recipe.name)
MANY = """
many (float[batch,16,8,8] x, float[batch,16,8,8] z) => (float[batch,16,8,8] y, float[batch,16,16,16] r, float[m,64] k,
    float[batch,8,64] l, int64[4] s) {
    both = Concat <axis = 1> (x, z)
    part = Slice (both, zero, sixteen, one)
    depth = Conv <group = 16, pads = [1, 1, 1, 1]> (part, depth_w)
    conv = Conv (depth, conv_w)
    relu = Relu (conv)
    pooled = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (relu)
    halved = Mul (half, pooled)
    sum = Add (halved, halved)
    heads = Reshape (sum, to_heads)
    turned = Transpose <perm = [0, 2, 1]> (heads)
    scores = MatMul (heads, turned)
    shares = Softmax (scores)
    mixed = MatMul (shares, heads)
    left = MatMul (left_w, heads)
    l = Exp (left)
    flat = Reshape (mixed, rows)
    k = Gemm <transB = 1> (flat, gemm_w, gemm_b)
    r = Resize <mode = "linear"> (sum, , scales)
    s = Shape (sum)
    last = Conv (sum, conv_w)
    y = Relu (last)
}
"""


def many() -> onnx.ModelProto:
    """Makes a graph with operators that two_branch lacks: Gemm, groups, pooling, Resize, attention, left weights."""
    rng = np.random.default_rng(3)
    shapes = {"depth_w": (16, 1, 3, 3), "conv_w": (16, 16, 1, 1), "left_w": (8, 16), "gemm_w": (64, 64)}
    weights = {k: (rng.standard_normal(v) / np.sqrt(v[1])).astype(np.float32) for k, v in shapes.items()}
    others = {"gemm_b": np.ones(64, np.float32), "half": np.float32(0.5), "scales": np.float32([1, 1, 2, 2])}
    lists = {"zero": [0], "sixteen": [16], "one": [1], "to_heads": [0, 16, 64], "rows": [-1, 64]}
    return parsed(MANY, weights | others | lists)


def decided(model: onnx.ModelProto, recipe: Recipe) -> dict[str, str]:
    """Returns the rule of each operator by the operator's output."""
    graph = Graph(model)
    return {graph.by_name[p.node].output[0]: p.rule.name for p in placements(graph, recipe)}


def ranges_of(model: onnx.ModelProto, recipe: Recipe, feeds: dict[str, np.ndarray]) -> dict[str, Range]:
    names = activations(quantizer_sites(Graph(model), recipe))
    return {
        n: Range(min(0.0, v.min()), max(0.0, v.max())) for n, v in zip(names, run(model, feeds, names), strict=True)
    }


def quantized(
    model: onnx.ModelProto, recipe: Recipe, feeds: dict[str, np.ndarray], **options: object
) -> QuantizedGraph:
    return quantize(model, recipe, ranges_of(model, recipe, feeds), {}, **options)


def feeds_of_many() -> dict[str, np.ndarray]:
    x, z = np.random.default_rng(1).standard_normal((2, 3, 16, 8, 8)).astype(np.float32)
    return {"x": x, "z": z}


# The table


def test_every_rule_has_a_reason_and_the_last_one_selects_int8() -> None:
    assert all(rule.why and rule.source for rule in EVERYTHING_RULES)
    assert max(Counter(rule.name for rule in EVERYTHING_RULES).values()) == 1
    last = EVERYTHING_RULES[-1]
    assert (last.decision, last.operators, last.weighted, last.activations) == ("int8", (), None, None)


def test_only_operators_that_cannot_be_quantized_stay_float() -> None:
    found = decided(many(), ALL_CPU)
    floats = {name for name, rule in found.items() if rule not in ("convolution", "linear layer", "without weights")}
    assert floats == {"part", "heads", "turned", "flat", "s", "last"}
    assert (found["part"], found["s"], found["last"]) == ("rearrangement", "shape", "graph output")
    assert decided(many(), ALL_TENSORRT)["last"] == "convolution", "TensorRT does not need its output in INT8"
    images = decided(two_branch(), ALL_CPU)
    assert images["encoder_before"] == images["encoder_size"] == "no activation"


@EVERY
def test_vendor_rules_select_only_operators_with_weights(recipe: Recipe) -> None:
    for model in (many(), two_branch()):
        sites = quantizer_sites(Graph(model), recipe)
        assert sites == weighted(sites)
    with pytest.raises(GateFailed, match="which must stay float"):
        check_tensorrt_rules(quantized(two_branch(), ALL_TENSORRT, feeds_of_two_branch()).model)


def test_operands_are_float_activations_listed_once() -> None:
    sites = {p.node.rpartition("/")[2]: p for p in quantizer_sites(Graph(many()), ALL_CPU)}
    tensors = {name: p.tensors for name, p in sites.items() if isinstance(p, OperandSite)}
    assert tensors["Add_sum"] == ("halved",) and tensors["Mul_halved"] == ("pooled",)
    assert tensors["MatMul_scores"] == ("heads", "turned") and tensors["MatMul_left"] == ("heads",)
    assert tensors["Resize_r"] == ("sum",) and tensors["Concat_both"] == ("x", "z")
    assert sites["Gemm_k"].weight_axis == 0


DIGESTS = {
    "cpu": "952e989beeabab078656d74d3adda83a03c837ae3070c52a8de276adb879ab36",
    "cpu-vnni": "9579a9273bc9e9391ab2530d065b0557f0611fb908e38417e6ca0f45d217ad43",
    "cpu-arm": "38b0297ba0c262142f9e4f15da09eb95ae7f30eedfd6f67f2cb0172db045d9b3",
    "openvino": "efa1403423f91d4b1b2a29afb33a286564ff478d67ea910f39bc616f45326c88",
    "tensorrt": "2fe949efb818a3b63e9aa7f36b3cb61a100bda6a604e1423090c82310deddf11",
}


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.name in DIGESTS], ids=lambda recipe: recipe.name)
def test_vendor_rules_write_unchanged_graphs(recipe: Recipe) -> None:
    """Compares digests of nodes and constants, since bytes depend on protobuf. They were computed before operators
    without weights could be placed, and again for OpenVINO when its weights became 7-bit, and for TensorRT when its
    convolutions got INT8 outputs."""
    model = two_branch()
    names = activations(quantizer_sites(Graph(model), recipe))
    ranges = {name: Range(-1.0 - i / 7, 2.0 + i / 3) for i, name in enumerate(sorted(names))}
    scopes = MISGNET.float32_scopes
    written = quantize(model, recipe, ranges, {"encoder_gelu": 600.0}, float32_scopes=scopes).model.graph
    nodes = [f"{n.name} {n.op_type} {list(n.input)} {list(n.output)} {list(n.attribute)}" for n in written.node]
    constants = [(item.name, onnx.numpy_helper.to_array(item).tobytes()) for item in written.initializer]
    assert hashlib.sha256(repr((nodes, constants)).encode()).hexdigest() == DIGESTS[recipe.name]


# The graph


@BOTH
def test_every_float_activation_of_a_placed_operator_is_dequantized(recipe: Recipe) -> None:
    model = many()
    written = quantize_graph(
        model, quantizer_sites(Graph(model), recipe), recipe, ranges_of(model, recipe, feeds_of_many())
    )
    graph = Graph(written)
    for p in quantizer_sites(Graph(model), recipe):
        makers = [graph.producer.get(name) for name in graph.by_name[p.node].input]
        kinds = [maker.op_type if maker else "constant" for maker in makers]
        assert set(kinds) <= {"DequantizeLinear", "constant"} and "DequantizeLinear" in kinds, p.node
    assert list(dq_of(written, "sum").input) == ["halved_dq", "halved_dq"]
    assert list(dq_of(written, "halved").input) == ["half", "pooled_dq"], "constants are not quantized"
    assert list(dq_of(written, "left").input) == ["left_w", "heads_dq"]
    assert dq_of(written, "r").input[2] == "scales"
    quantizers = Counter(n.input[0] for n in written.graph.node if n.op_type == "QuantizeLinear")
    assert set(quantizers.values()) == {1}, "readers share one Q/DQ pair"
    assert all(graph.producer[n.input[0]].op_type != "DequantizeLinear"
               for n in graph.nodes if n.op_type == "QuantizeLinear" and n.input[0] in graph.producer)  # fmt: skip


@pytest.mark.parametrize("recipe", [ALL_CPU, ALL_TENSORRT, replace(OPENVINO, rules=EVERYTHING_RULES)],
                         ids=lambda recipe: recipe.name)  # fmt: skip
@pytest.mark.parametrize("which", ["two_branch", "many"])
def test_graph_runs_and_loses_more_than_with_vendor_rules(recipe: Recipe, which: str) -> None:
    model, feeds = (two_branch(), feeds_of_two_branch()) if which == "two_branch" else (many(), feeds_of_many())
    few = replace(recipe, rules=next(r.rules for r in RECIPES if r.name == recipe.name))
    expected = run(model, feeds)
    errors = []
    for rules in (recipe, few):
        outputs = run(quantized(model, rules, feeds).model, feeds)
        assert all(np.isfinite(output).all() for output in outputs)
        parts = zip(expected, outputs, strict=True)
        errors.append(sum(float(np.abs(a - b).mean() / (a.std() + 1e-9)) for a, b in parts))
    assert errors[1] < errors[0] < 0.4


@BOTH
def test_operator_without_weights_can_be_kept_float(recipe: Recipe) -> None:
    feeds = feeds_of_many()
    names = {p.node for p in quantizer_sites(Graph(many()), recipe) if isinstance(p, OperandSite)}
    found = quantized(many(), recipe, feeds, keep_float=names)
    assert found.sites and all(p.node not in names for p in found.sites)
    softmax = next(node for node in found.model.graph.node if node.op_type == "Softmax")
    assert not softmax.input[0].endswith(("dq", "dq_half"))
    share = quantized(many(), recipe, feeds).int8_share
    assert found.int8_share == share and (share == 1) is (recipe is ALL_TENSORRT), (
        "the last convolution stays float on the CPU"
    )


def test_tensorrt_rtx_compiles_a_fully_quantized_graph() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    found = quantized(two_branch(), ALL_TENSORRT, feeds_of_two_branch())
    plan = compile_plan(
        found.model.SerializeToString(),
        PlanOptions(vendor="rtx", compute_capabilities=("sm86",), profiles=((1, 4, 4),)),
    )
    assert plan.data
    assert plan.quantize_layers == len(activations(found.sites))


def test_tensorrt_rtx_compiles_attention_pooling_and_resizing() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    model = many()
    del model.graph.output[-1]  # RTX returns sizes in INT64 only on request
    found = quantized(model, ALL_TENSORRT, feeds_of_many())
    plan = compile_plan(
        found.model.SerializeToString(),
        PlanOptions(vendor="rtx", compute_capabilities=("sm86",), profiles=((1, 4, 4),)),
    )
    assert plan.quantize_layers == len(activations(found.sites))


def test_concat_of_dequantized_values_stays_float32_for_onnxruntime() -> None:
    model = many()
    written = quantize_graph(
        model,
        quantizer_sites(Graph(model), ALL_TENSORRT),
        ALL_TENSORRT,
        ranges_of(model, ALL_TENSORRT, feeds_of_many()),
    )
    typed = Graph(to_float16(written, []))
    assert typed.elem_type(dq_of(typed.model, "both").input[0]) == onnx.TensorProto.FLOAT
    assert typed.elem_type(dq_of(typed.model, "scores").input[0]) == onnx.TensorProto.FLOAT16


def test_operators_without_weights_must_read_one_type() -> None:
    found = quantized(many(), ALL_TENSORRT, feeds_of_many())
    model, names = found.model, {p.node for p in found.sites if isinstance(p, OperandSite)}
    check_tensorrt_rules(model, names)
    with pytest.raises(GateFailed, match="which must stay float"):
        check_tensorrt_rules(model, names - {"shares/Softmax_shares"})
    scale = next(item for item in model.graph.initializer if item.name == "turned_scale_half")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.1), scale.name))
    model.graph.value_info.clear()
    with pytest.raises(GateFailed, match=r"several types|they must be equal"):
        check_tensorrt_rules(model, names)


# The manifest


@BOTH
def test_manifest_records_scale_and_zero_point_of_each_operand(recipe: Recipe) -> None:
    model, feeds = many(), feeds_of_many()
    graph, reverted = Graph(model), "shares/Softmax_shares"
    found = quantized(model, recipe, feeds, keep_float=[reverted])
    rules, entries = placement_entries(graph, recipe, found)
    by_node = {entry.node: entry for entry in entries}
    assert {entry.node for entry in entries if entry.precision == "int8"} == {p.node for p in found.sites}
    assert by_node[reverted].rule == "reverted at no cost" and not by_node[reverted].operands
    for p in found.sites:
        entry = by_node[p.node]
        assert (entry.int8 is None, bool(entry.operands)) == (isinstance(p, OperandSite),) * 2
    scores = by_node["scores/MatMul_scores"]
    assert scores.rule == "without weights" and len(scores.operands) == 2
    assert all(isinstance(steps, Steps) and steps.signed is (recipe is ALL_TENSORRT) for steps in scores.operands)
    assert {entry.rule for entry in entries} == {rule.name for rule in rules}
