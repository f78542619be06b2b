"""Tests that the tables of placement rules are complete and have sources, and that the first matching rule applies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from onnx import numpy_helper

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_calibration.quantizer.placement import Placement, placements, quantizer_sites, weighted
from misgnet_calibration.quantizer.quantize import quantize
from misgnet_calibration.quantizer.recipes import (
    CPU,
    CPU_ARM,
    CPU_VNNI,
    OPENVINO,
    RECIPES,
    RTX,
    TENSORRT,
    TENSORRT_FP16,
    Recipe,
)
from misgnet_calibration.quantizer.rules import EVERYTHING_RULES, Rule
from support.graphs import parsed, two_branch

OWN = (MISGNET.applied_to(TENSORRT), MISGNET.applied_to(RTX))  # with the rules for MISGNET's modules
EVERY = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
EVERY_INT8 = pytest.mark.parametrize("recipe", [r for r in RECIPES if r.int8], ids=lambda recipe: recipe.name)


def decided(graph: Graph, recipe: Recipe) -> dict[str, Placement]:
    return {p.node.rpartition("/")[2]: p for p in placements(graph, recipe)}


@EVERY
def test_every_rule_has_a_reason_and_the_last_one_matches_all(recipe: Recipe) -> None:
    assert all(rule.why and rule.source for rule in recipe.rules)
    assert max(Counter(rule.name for rule in recipe.rules).values()) == 1
    last = recipe.rules[-1]
    assert last == Rule(name=last.name, decision="float", why=last.why, source=last.source)


@EVERY
def test_every_operator_gets_a_rule_and_sites_are_the_int8_ones(recipe: Recipe) -> None:
    graph = Graph(two_branch())
    found = placements(graph, recipe)
    assert [p.node for p in found] == [node.name for node in graph.nodes]
    assert [p.node for p in found if p.rule.decision == "int8"] == [p.node for p in quantizer_sites(graph, recipe)]
    assert sum(p.macs for p in found) == sum(graph.macs(node) for node in graph.nodes)


@EVERY_INT8
def test_rules_select_the_expected_operators(recipe: Recipe) -> None:
    found = decided(Graph(two_branch()), MISGNET.applied_to(recipe))
    expected = {
        "Conv_encoder_stem": "few channels", "Conv_encoder_conv": "convolution",
        "LayerNormalization_encoder_norm": "normalisation", "MatMul_encoder_product": "linear layer",
        "Add_encoder_sum": "residual sum", "Gelu_encoder_gelu": "transcendental",
        "Reshape_encoder_flat": "not weighted",
    }  # fmt: skip
    if recipe is RTX:  # its encoder stays float
        expected = dict.fromkeys(expected, "encoder") | {"MatMul_decoder_one": "linear layer"}
    assert {name: found[name].rule.name for name in expected} == expected


def network(names: dict[str, str]) -> Graph:
    """Makes operators in the modules of the network: sr, patch embedding, attention, MLPs and two of the decoder."""
    text = """g (float[batch,32,8,8] x, float[batch,64,32] t) => (float[batch,32,8,8] last, float[batch,64,32] k) {
        sr = Conv (x, w)  flat = Reshape (sr, rows)  n = LayerNormalization (flat, one, one)  k = MatMul (n, square)
        embed = Conv (x, w)  fc1 = Conv (x, w)  fc2 = Conv (fc1, w)  wide = Conv (x, w)
        fine = Conv (x, w)  relu = Relu (fine)  next = Conv (relu, w)  sum = Add (next, relu)
        all = Sum (sum, embed, fc2, wide)  last = Conv (all, small) }"""
    constants = {
        "w": np.ones((32, 32, 1, 1), np.float32), "small": np.ones((32, 32, 1, 1), np.float32),
        "square": np.ones((32, 32), np.float32), "one": np.ones(32, np.float32), "rows": np.array([-1, 64, 32]),
    }  # fmt: skip
    return Graph(parsed(text, constants, names))


MODULES = {
    "sr": "backbone.block1.0.attn.sr", "n": "backbone.block1.0.attn.norm", "k": "backbone.block1.0.attn.kv",
    "embed": "backbone.patch_embed2.proj", "fc1": "backbone.block3.0.mlp.fc1", "fc2": "backbone.block3.0.mlp.fc2",
    "wide": "backbone.block2.1.mlp.fc1", "fine": "decode1.conv3", "next": "decode3.conv_d1", "last": "final2.0.conv",
}  # fmt: skip


def test_tensorrt_quantizes_what_stays_int8_and_rtx_only_the_decoder() -> None:
    graph = network(MODULES)
    decisions = {node.name: node.output[0] for node in graph.nodes}
    chosen = {r.name: {decisions[p.node] for p in quantizer_sites(graph, r)} for r in OWN}
    assert chosen["rtx"] == {"fine", "next", "last"}
    assert chosen["tensorrt"] == {"sr", "embed", "fc1", "fc2", "fine", "next", "last"}
    found = {decisions[p.node]: p.rule.name for p in placements(graph, OWN[0])}
    assert (found["k"], found["wide"]) == ("linear layer of attention", "wide MLP")


def test_outputs_are_int8_where_an_int8_operator_or_a_layer_norm_reads_them() -> None:
    graph = network(MODULES)
    outputs = {r.name: {p.output for p in weighted(quantizer_sites(graph, r)) if p.output} for r in OWN}
    assert outputs == {"tensorrt": {"sr", "fc1", "relu"}, "rtx": set()}


def test_products_of_activations_groups_few_positions_and_gemm_stay_float() -> None:
    text = """g (float[batch,32,8,8] x, float[batch,64,32] t) => (float[batch,64,64] s, float[batch,32,8,8] d,
        float[batch,2,32] n, float[m,32] k) {
        turned = Transpose <perm = [0, 2, 1]> (t)  s = MatMul (t, turned)
        d = Conv <group = 32, pads = [1, 1, 1, 1]> (x, depth_w)
        first = Slice (t, zero, two, one)  n = MatMul (first, w)
        flat = Reshape (t, rows)  k = Gemm (flat, w)
    }"""
    ones = np.ones
    constants = {
        "depth_w": ones((32, 1, 3, 3), np.float32), "w": ones((32, 32), np.float32), "zero": np.array([0]),
        "two": np.array([2]), "one": np.array([1]), "rows": np.array([-1, 32]),
    }  # fmt: skip
    found = decided(Graph(parsed(text, constants)), TENSORRT)
    names = {name: p.rule.name for name, p in found.items()}
    assert names["MatMul_s"] == "product of activations" and names["Conv_d"] == "depthwise convolution"
    assert names["MatMul_n"] == "few positions" and names["Gemm_k"] == "Gemm"


@EVERY
def test_products_that_resize_are_no_quantizer_sites_and_keep_their_matrices(recipe: Recipe) -> None:
    """With a matrix taken for a weight, the second product would be a linear layer from 32 to 128 channels."""
    text = """g (float[batch,1,32,32] x) => (float[batch,1,128,128] y) {
        tall = MatMul (interpolation_rows, x)  y = MatMul (tall, interpolation_columns)
    }"""
    values = np.random.default_rng(1).integers(0, 9, (128, 32)).astype(np.float32) / 8
    matrices = {"interpolation_rows": values, "interpolation_columns": np.ascontiguousarray(values.T)}
    model = parsed(text, matrices)
    for rules in (recipe.rules, EVERYTHING_RULES):
        changed = replace(recipe, rules=rules)
        found = placements(Graph(model), changed)
        assert {p.rule.name for p in found} <= {"interpolation", "FP16 requested"}
        assert [p.macs for p in found] == [0, 0], "an interpolation matrix is no weight"
        result = quantize(model, changed, {}, {})
        assert result.sites == ()
        kept = {item.name.removesuffix("_half"): numpy_helper.to_array(item) for item in result.model.graph.initializer}
        assert kept.keys() == matrices.keys() and all(np.array_equal(kept[name], matrices[name]) for name in kept)


@EVERY_INT8
def test_product_with_a_matrix_for_each_date_stays_float(recipe: Recipe) -> None:
    text = """g (float[2,batch,64,32] x) => (float[2,batch,64,48] y, float[2,batch,16,32] z) {
        y = MatMul (x, behind)  z = MatMul (before, x)
    }"""
    constants = {"behind": np.ones((2, 1, 32, 48), np.float32), "before": np.ones((2, 1, 16, 64), np.float32)}
    found = decided(Graph(parsed(text, constants)), recipe)
    assert {p.rule.name for p in found.values()} == {"stacked weights"}
    assert found["MatMul_y"].macs == 2 * 64 * 32 * 48


def test_first_matching_rule_applies() -> None:
    graph = Graph(two_branch())
    added = Rule(name="none at all", decision="float", why="a test", source="here", operators=("MatMul",))
    changed = replace(CPU, rules=(added, *CPU.rules))
    assert {p.rule.name for p in placements(graph, changed) if p.operator == "MatMul"} == {"none at all"}
    assert [p.node for p in quantizer_sites(graph, changed)] == [
        p.node for p in quantizer_sites(graph, CPU) if "Conv" in p.node
    ]


def test_number_formats_differ_by_engine() -> None:
    assert (CPU.weight_bits, CPU_VNNI.weight_bits) == (7, 8)
    assert CPU_ARM.symmetric_activations and not CPU_VNNI.symmetric_activations
    assert not TENSORRT.quantize_bias and TENSORRT.symmetric_activations
    assert (CPU.conv_outputs, OPENVINO.conv_outputs) == ("int8", "float")
    assert (TENSORRT.conv_outputs, RTX.conv_outputs) == ("chained", "float")


def test_fp16_recipe_quantizes_nothing() -> None:
    graph = Graph(two_branch())
    assert {p.rule.name for p in placements(graph, TENSORRT_FP16)} == {"FP16 requested"}
    assert quantizer_sites(graph, TENSORRT_FP16) == [] and not TENSORRT_FP16.int8
    precisions = {recipe.name: recipe.precision for recipe in RECIPES}
    assert precisions == {
        "cpu": "int8", "cpu-vnni": "int8", "cpu-arm": "int8", "openvino": "int8", "tensorrt": "int8+float16",
        "rtx": "int8+float16", "tensorrt-fp16": "float16",
    }  # fmt: skip
