"""Tests the graph export: separate dates, the kept guard, input and output forms, simplification."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs the [export] extra")

import onnx

from misgnet.evaluation import predict_probability
from misgnet_calibration.onnx_graph.graph import Graph, interpolates, scope
from misgnet_calibration.quantizer.float16 import float32_reasons, to_float16
from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_calibration.quantizer.placement import placements
from misgnet_calibration.quantizer.recipes import RECIPES, Recipe
from misgnet_export.graph.algebra import rewrite
from misgnet_export.graph.cut import find_cut
from misgnet_export.graph.deployed import Deployed
from misgnet_export.graph.export import export_graph
from misgnet_export.graph.simplify import simplify_graph
from misgnet_export.graph.split import split_graph
from misgnet_export.pipeline.agreement import Agreement, detector_of, is_broken, require_same
from misgnet_runtime.bundle.manifest import Interface
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.errors import GateFailed
from support.golden import make_images, make_network

TILE = 128
LOGITS = Interface(TILE, 8, "float32", "logits")
SEED = 20260103  # with norm factor 4, some graph nodes of this seed receive no pixel


@cache
def exported(norm: float = 4) -> onnx.ModelProto:
    return export_graph(make_network(SEED, norm=norm), LOGITS)


@cache
def simplified(norm: float = 4) -> onnx.ModelProto:
    return simplify_graph(exported(norm))


@cache
def rewritten(norm: float = 4) -> onnx.ModelProto:
    return rewrite(simplified(norm))


def guidance_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.name.startswith("MGLNet")]


def logits_of(model: onnx.ModelProto, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    with OnnxRuntimeEngine(model.SerializeToString(), LOGITS.max_batch) as engine:
        return engine.infer({"before": before.numpy(), "after": after.numpy()})["logits"]


def test_golden_weights_with_norm_factor_4_have_a_node_without_pixels() -> None:
    """Checks the precondition of the tests below: without such a node they could not detect a dropped guard."""
    network = make_network(SEED, norm=4)
    sums = []
    for level in (network.MGLNet0, network.MGLNet1, network.MGLNet2):
        for projection in (level.mutualnet0.x1_proj0, level.mutualnet0.x2_proj0):
            projection.register_forward_hook(lambda _m, _i, out: sums.append(out[1].sum(2).min().item()))
    with torch.inference_mode():
        network(*make_images(SEED, 2, TILE, TILE))
    assert min(sums) < 1e-9


@pytest.mark.parametrize("stage", ["exported", "simplified", "rewritten"])
def test_graph_reproduces_the_network(stage: str) -> None:
    network, images = make_network(SEED, norm=4), make_images(SEED, 3, TILE, TILE)  # 3: unlike the example's batch
    model = {"exported": exported, "simplified": simplified, "rewritten": rewritten}[stage]()
    with torch.inference_mode():
        expected = network(*images).numpy()
    found = logits_of(model, *images)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("norm", [1, 4])
def test_rewriting_changes_logits_only_by_float32_rounding(norm: float) -> None:
    images = make_images(SEED, 3, TILE, TILE)
    expected, found = logits_of(simplified(norm), *images), logits_of(rewritten(norm), *images)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


def test_only_the_output_is_resized_by_products() -> None:
    graph = Graph(rewrite(simplified()))
    resizes = [node for node in graph.nodes if node.op_type == "Resize"]
    assert sorted(scope(node) for node in resizes) == [f"decode{i}" for i in (1, 1, 2, 2, 3, 3)]
    assert {graph.shape(node.input[0])[1] for node in resizes} == {64, 128}
    products = [node for node in graph.nodes if interpolates(node)]
    assert [scope(node) for node in products] == ["final2.1.conv"] * 2
    assert graph.shape(products[1].output[0]) == [1, 2, TILE, TILE]


def test_products_that_resize_are_in_the_head_of_a_split_graph() -> None:
    parts = split_graph(rewrite(simplified()), LOGITS)
    assert [sum(map(interpolates, part.graph.node)) for part in (parts.encoder, parts.head)] == [0, 2]


def test_rewritten_graph_transposes_only_narrow_tensors() -> None:
    """Six MLPs are convolutions from end to end, and the encoder has no transpose of three axes left."""
    nodes = [node for node in rewritten().graph.node if node.name.startswith("backbone")]
    kernels = [name for node in nodes if node.op_type == "Conv" for name in node.input if name.endswith("_kernel")]
    assert len(kernels) == 12
    transposes = [list(node.attribute[0].ints) for node in nodes if node.op_type == "Transpose"]
    assert [0, 2, 1] not in transposes
    assert transposes.count([0, 3, 1, 2]) == 15 and transposes.count([0, 2, 3, 1]) == 15
    assert not [node for node in nodes if node.op_type == "Mul"], "the scale of attention is in its query"


def test_guidance_of_both_dates_is_one_chain() -> None:
    nodes = guidance_of(rewritten())
    assert len(nodes) <= 330 and len(rewritten().graph.node) <= 640
    operators = [node.op_type for node in nodes]
    assert operators.count("MatMul") == 3 * 12, "products with two to eight rows are sums"
    assert operators.count("Softmax") == 3 * 8
    assert operators.count("Clip") == 3 * 3, "guards of empty nodes and of both norms"
    assert {node.domain for node in rewritten().graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in rewritten().opset_import] == [("", 20)]


def test_casts_of_the_float16_graph_are_at_the_borders_of_the_guidance() -> None:
    graph = Graph(to_float16(rewritten(), (), MISGNET.float32_scopes))
    casts = [node for node in graph.nodes if node.op_type == "Cast"]
    read = [graph.producer[node.input[0]] for node in casts if node.input[0] in graph.producer]
    assert read[0].op_type == "Concat", "the images of both dates"
    assert sum(scope(node).startswith("backbone") for node in read) == 3, "the maps that the guidance reads"
    assert sum(scope(node).startswith("MGLNet") for node in read) == 3, "the maps that it writes"
    assert len(casts) == 8 and scope(read[-1]).startswith("final2"), "and the logits"


def test_guidance_reads_each_map_of_both_dates_once() -> None:
    graph = Graph(rewritten())
    found = find_cut(graph, LOGITS).maps
    assert [graph.shape(entry.name) for entry in found] == [[2, 64, 32, 32], [2, 128, 16, 16], [2, 320, 8, 8]]
    assert [entry.reader.partition("/")[0] for entry in found] == ["MGLNet0", "MGLNet1", "MGLNet2"]


def test_network_can_be_exported_as_it_is() -> None:
    """The straight export, with which benchmarks compare this project, has no stacked guidance."""
    network, images = make_network(SEED, norm=4), make_images(SEED, 3, TILE, TILE)
    model = export_graph(network, LOGITS, stacked=False)
    assert len(guidance_of(model)) > 400
    with torch.inference_mode():
        expected = network(*images).numpy()
    assert np.abs(logits_of(model, *images) - expected).max() < 1e-4 * expected.std()
    assert network.decode1.conv3.weight.requires_grad, "the network itself stays trainable"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_guidance_stays_float_in_every_recipe(recipe: Recipe) -> None:
    graph = Graph(rewritten())
    found = [entry for entry in placements(graph, MISGNET.applied_to(recipe)) if entry.node.startswith("MGLNet")]
    assert len(found) == len(guidance_of(rewritten()))
    assert {entry.rule.decision for entry in found} == {"float"}
    weighted = {entry.rule.name for entry in found if graph.weight_of(graph.by_name[entry.node])}
    assert weighted == {"stacked weights" if recipe.int8 else "FP16 requested"}
    assert {node.name for node in guidance_of(rewritten())} <= set(float32_reasons(graph, {}, MISGNET.float32_scopes))


def test_both_dates_are_separate_inputs() -> None:
    before, after = make_images(SEED, 1, TILE, TILE)
    assert [value.name for value in exported().graph.input] == ["before", "after"]
    different, same = logits_of(exported(), before, after), logits_of(exported(), before, before)
    assert np.abs(different - same).max() > 1e-3


def test_example_inputs_differ() -> None:
    """Given one tensor for both dates, torch.export makes them a single input."""
    before, after = Deployed(make_network(SEED), LOGITS).example()
    assert not torch.equal(before, after)


def test_layer_norm_and_gelu_are_single_operators_and_batch_norms_are_folded() -> None:
    operators = [node.op_type for node in simplified().graph.node]
    assert operators.count("LayerNormalization") == 24 and operators.count("Gelu") == 6
    assert "BatchNormalization" not in operators and "Erf" not in operators


def test_batch_is_dynamic_and_tile_is_fixed() -> None:
    shape = exported().graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param == "batch"
    assert [d.dim_value for d in shape[1:]] == [3, TILE, TILE]


def test_nodes_are_named_after_their_modules() -> None:
    scopes = {node.name.rpartition("/")[0] for node in simplified().graph.node}
    assert {"backbone.block1.0.attn.q", "decode1.conv3", "MGLNet2.mutualnet0", "MGLNet0.mutualnet0.gcn"} <= scopes


def test_graph_takes_raw_images_and_returns_masks() -> None:
    """Graphs that return probabilities are tested by every build."""
    network, interface = make_network(SEED), Interface(64, 4, "uint8", "mask")
    before, after = np.random.default_rng(0).integers(0, 256, (2, 2, 64, 64, 3), np.uint8)
    with detector_of(export_graph(network, interface), interface) as detector:
        found = detector.probability(before, after)
    expected = predict_probability(network, before, after)
    assert 0.01 < (expected > 0.5).mean() < 0.99, "both classes occur"
    assert ((found > 0.5) == (expected > 0.5)).mean() > 0.9999


def test_float_stage_that_changes_predictions_fails() -> None:
    require_same(Agreement(1e-6, 1e-7, 1.0), LOGITS, "b", "a")
    for wrong in (1e-3, float("inf"), float("nan")):
        with pytest.raises(GateFailed, match="differs"):
            require_same(Agreement(wrong, 0.0, 1.0), LOGITS, "b", "a")


def test_masks_are_compared_if_the_graph_outputs_masks() -> None:
    masks = Interface(TILE, 8, "uint8", "mask")
    require_same(Agreement(0.5, 0.1, 0.99995), masks, "b", "a")
    for wrong in (0.999, float("nan")):
        with pytest.raises(GateFailed, match="masks"):
            require_same(Agreement(0.5, 0.1, wrong), masks, "b", "a")


def test_broken_int8_graph_is_told_from_a_lossy_one() -> None:
    assert not is_broken(Agreement(0.9, 0.01, 0.99))
    assert is_broken(Agreement(0.9, 0.01, 0.5)) and is_broken(Agreement(0.9, float("nan"), 0.99))
