"""Tests that graphs of networks that others wrote are quantized, converted to float16, repaired and controlled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from misgnet_calibration.algorithms.accuracy_control import groups_of
from misgnet_calibration.algorithms.accuracy_control.groups import LARGEST_SHARE, balanced_names
from misgnet_calibration.algorithms.bias_correction import logit_operator
from misgnet_calibration.algorithms.improve import Score, repair
from misgnet_calibration.onnx_graph.edits import bias_of
from misgnet_calibration.onnx_graph.graph import Graph, output_axis, scope
from misgnet_calibration.quantizer.conv_rows import as_matrix, sampled_rows
from misgnet_calibration.quantizer.float16 import float32_reasons, to_float16
from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_calibration.quantizer.placement import Placement, date_twins, placements, quantizer_sites, weighted
from misgnet_calibration.quantizer.quantize import quantize
from misgnet_calibration.quantizer.recipes import CPU, OPENVINO, RECIPES, RTX, TENSORRT, TENSORRT_FP16, Recipe
from misgnet_calibration.quantizer.rules import EVERYTHING_RULES
from misgnet_calibration.statistics.collect import absolute_maxima, collect
from misgnet_calibration.statistics.observers import Histogram, Range
from misgnet_runtime.bundle import Interface
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import TileSet
from support.foreign_graphs import FOREIGN, foreign
from support.graphs import images, parsed, run, two_branch, write_tiles

INTERFACE = Interface(32, 8)
EVERY_GRAPH = pytest.mark.parametrize("name", FOREIGN)
EVERY_RECIPE = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


@cache
def tiles() -> TileSet:
    folder = TemporaryDirectory()
    found = TileSet.open(write_tiles(Path(folder.name) / "tiles", 16), 32)
    found.folder = folder  # type: ignore[attr-defined]  # kept as long as the tiles
    return found


def probability(model: onnx.ModelProto) -> NDArray[np.float32]:
    before, after = images(16)
    return run(model, {"before": before, "after": after})[0]


def statistics(model: onnx.ModelProto, names: list[str]) -> dict[str, Histogram]:
    histograms = {name: Histogram() for name in names}
    collect(model, INTERFACE, tiles(), histograms)
    return histograms


def ranges_of(model: onnx.ModelProto, recipe: Recipe) -> dict[str, Range]:
    names = sorted({x for site in quantizer_sites(Graph(model), recipe) for x in site.tensors})
    return {name: Range(found.low, found.high) for name, found in statistics(model, names).items()}


@cache
def maxima(name: str) -> Mapping[str, float]:
    return absolute_maxima(foreign(name), INTERFACE, tiles().spread(4))


def rules_of(graph: Graph, recipe: Recipe) -> dict[str, Placement]:
    outputs = {node.name: node.output[0] for node in graph.nodes}
    return {outputs[p.node]: p for p in placements(graph, recipe)}


def convolutions() -> Graph:
    text = """g (float[batch,32,8,8] x) => (float[batch,16,16,16] y, float[batch,32,8,8] z, float[batch,64,6,6] d) {
        y = ConvTranspose <strides = [2, 2]> (x, t)
        z = ConvTranspose <group = 4, pads = [1, 1, 1, 1]> (x, g)
        grouped = Conv <group = 4, pads = [1, 1, 1, 1]> (x, c)
        d = Conv <dilations = [2, 2], pads = [1, 1, 1, 1]> (grouped, w)
    }"""
    shapes = {"t": (32, 16, 2, 2), "g": (32, 8, 3, 3), "c": (32, 8, 3, 3), "w": (64, 32, 3, 3)}
    return Graph(parsed(text, {name: np.ones(shape, np.float32) for name, shape in shapes.items()}))


def test_macs_of_transposed_grouped_and_dilated_convolutions() -> None:
    graph = convolutions()
    found = {node.output[0]: (graph.rows(node), graph.macs(node)) for node in graph.nodes}
    assert found == {
        "y": (64, 64 * 32 * 16 * 4), "z": (64, 64 * 32 * 8 * 9), "grouped": (64, 64 * 32 * 8 * 9),
        "d": (36, 36 * 64 * 32 * 9),
    }  # fmt: skip


def test_axis_of_output_channels_is_the_second_of_a_transposed_convolution() -> None:
    graph = convolutions()
    whole, grouped = (node for node in graph.nodes if node.op_type == "ConvTranspose")
    assert output_axis(whole) == 1
    with pytest.raises(ValueError, match="grouped ConvTranspose"):
        output_axis(grouped)


@pytest.mark.parametrize(("operator", "name", "module"), [
    ("Conv", "/layer1/layer1.0/conv1/Conv", "layer1.layer1.0.conv1"),
    ("Conv", "/encoder/stem/Conv_1", "encoder.stem"),
    ("Conv", "Conv_12", ""), ("Conv", "node_conv2d_3", ""), ("Cast", "/Cast_before_half", ""),
    ("Conv", "model/block1/conv/Conv2D", "model.block1.conv"),
    ("MatMul", "backbone.block1.0.attn.q/MatMul_21", "backbone.block1.0.attn.q"),
    ("Reshape", "stem/Reshape_/encoder/stem/Conv_output_0_grid", "stem"),
])  # fmt: skip
def test_module_of_a_node(operator: str, name: str, module: str) -> None:
    assert scope(helper.make_node(operator, ["x"], ["y"], name)) == module


def test_names_that_quantization_adds_keep_the_module_although_tensors_have_slashes() -> None:
    model = foreign("unet")
    for node in model.graph.node:  # tensors are named after nodes, as PyTorch's exporter does
        for other in model.graph.node:
            other.input[:] = [f"{node.name}_output_0" if x == node.output[0] else x for x in other.input]
        node.output[0] = f"{node.name}_output_0" if node.output[0] != "probability" else "probability"
    graph = Graph(quantize(model, CPU, ranges_of(model, CPU), {}).model)
    added = {scope(node) for node in graph.nodes if node.op_type.endswith("Linear")}
    assert added and added <= {scope(node) for node in model.graph.node}


def test_graphs_within_graphs_are_refused() -> None:
    text = """g (bool c, float[1] x) => (float[1] y) {
        y = If (c) <
            then_branch = a () => (float[1] t) { t = Relu (x) }, else_branch = b () => (float[1] e) { e = Abs (x) }
        >
    }"""
    with pytest.raises(InputError, match=r"If 'y/If_y' contains a graph of its own; export .* without control flow"):
        Graph(parsed(text, {}))


def test_operators_of_unknown_shape_stay_float() -> None:
    text = """g (float[batch,32] x, int64[k] i) => (float[n,32] y) {
        rows = NonZero (x)  few = Gather (x, i)  some = Compress <axis = 0> (few, mask)  y = MatMul (some, w)
    }"""
    graph = Graph(parsed(text, {"w": np.ones((32, 32), np.float32), "mask": np.array([True])}))
    found = rules_of(graph, CPU)["y"]
    assert (found.rule.name, found.macs) == ("unknown shape", 0)


def test_rules_for_modules_of_misgnet_apply_only_where_they_are_handed_in() -> None:
    """``backbone`` is the name of many encoders: without this, TensorRT for RTX would keep all of them in float."""
    graph = Graph(two_branch())
    rules = {
        name: {p.rule.name for p in placements(graph, r)} for name, r in (("own", MISGNET.applied_to(RTX)), ("", RTX))
    }
    assert "encoder" in rules["own"] and "encoder" not in rules[""]
    assert len(quantizer_sites(graph, RTX)) > len(quantizer_sites(graph, MISGNET.applied_to(RTX)))
    assert not any(rule.within for recipe in RECIPES for rule in recipe.rules)


EXPECTED = {
    "unet": {
        "down_conv": "few channels", "down_wide": "convolution", "down_deep": "convolution", "up_conv": "convolution",
        "up_first": "transposed convolution", "up_grouped": "transposed convolution", "down_norm": "normalisation",
        "down_pool": "not weighted",
    },
    "mobile": {
        "one_squeeze": "few positions", "one_excite": "few positions", "one_project": "convolution",
        "one_weight": "transcendental", "one_scaled": "not weighted", "one_sum": "residual sum",
        "compare_large": "not weighted", "one_pool": "not weighted",
    },
    "tokens": {
        "attend_product": "linear layer", "attend_scores": "product of activations", "mlp_wide": "Gemm",
        "attend_mixed": "not weighted", "encode_instance": "normalisation", "block_variance": "normalisation",
    },
    "flow": {"flow_warped": "sampling at coordinates", "head_conv": "convolution", "head_full": "not weighted"},
    "classes": {"encode_stem": "few channels", "head_logits": "few channels", "head_softmax": "transcendental"},
}  # fmt: skip


@EVERY_GRAPH
@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.int8], ids=lambda recipe: recipe.name)
def test_placement(name: str, recipe: Recipe) -> None:
    found = rules_of(Graph(foreign(name)), recipe)
    assert {output: found[output].rule.name for output in EXPECTED[name]} == EXPECTED[name]


def test_depthwise_and_grouped_convolutions_of_each_engine() -> None:
    found = {recipe.name: rules_of(Graph(foreign("mobile")), recipe) for recipe in (CPU, OPENVINO, TENSORRT)}
    found["misgnet"] = rules_of(Graph(foreign("mobile")), MISGNET.applied_to(CPU))
    assert {p["one_depth"].rule.name for p in found.values()} == {"depthwise convolution"}
    decided = {name: p["one_depth"].rule.decision for name, p in found.items()}
    assert decided == {"cpu": "float", "openvino": "int8", "tensorrt": "float", "misgnet": "int8"}
    grouped = {name: p["compare_group"].rule.name for name, p in found.items()}
    assert grouped["cpu"] == "convolution" and grouped["tensorrt"] == "grouped convolution"


def test_a_relu6_is_quantized_after_its_bound_where_the_engine_fuses_it() -> None:
    graph = Graph(foreign("unet"))
    outputs = {r.name: {p.output for p in weighted(quantizer_sites(graph, r))} for r in (CPU, TENSORRT)}
    assert "down_six" in outputs["cpu"] and "down_wide" not in outputs["cpu"]
    assert "down_six" not in outputs["tensorrt"]


@EVERY_GRAPH
@EVERY_RECIPE
def test_quantized_graph_is_close_to_the_float_graph(name: str, recipe: Recipe) -> None:
    model = foreign(name)
    expected = probability(model)
    found = quantize(model, recipe, ranges_of(model, recipe), maxima(name))
    difference = np.abs(probability(found.model) - expected).mean()
    assert difference < (0.01 if found.sites else 2e-4)
    assert bool(found.sites) == (recipe.int8 and name != "classes")


@EVERY_GRAPH
@pytest.mark.parametrize("recipe", [CPU, OPENVINO, TENSORRT], ids=lambda recipe: recipe.name)
def test_everything_in_int8_gives_a_valid_graph(name: str, recipe: Recipe) -> None:
    if name == "classes" and recipe is not TENSORRT:
        pytest.skip("ONNX Runtime 1.32 fails on a Resize of some axes in INT8; the rewrites give it scales first")
    everything = replace(recipe, rules=EVERYTHING_RULES)
    model = foreign(name)
    found = quantize(model, everything, ranges_of(model, everything), maxima(name))
    assert np.abs(probability(found.model) - probability(model)).mean() < 0.05


def test_float16_keeps_coordinates_means_of_squares_and_what_onnx_defines_for_float32_only() -> None:
    graph = Graph(foreign("flow"))
    outputs = {node.name: node.output[0] for node in graph.nodes}
    found = {outputs[name]: why for name, why in float32_reasons(graph, {}).items()}
    moved = {"flow_small", "flow_scaled", "flow_turned", "flow_coordinates", "flow_warped", "flow_grid", "flow_unit"}
    assert {name for name, why in found.items() if why.startswith("coordinates")} >= moved
    assert "flow_conv" not in found and "two_elu" not in found
    assert found["head_square"] == found["head_energy"] == "a mean of squares, which underflows for small activations"
    line = parsed("g (float a) => (float[n] y) { y = Range (zero, a, a) }", {"zero": np.float32(0)})
    assert list(float32_reasons(Graph(line), {}).values()) == ["ONNX does not define Range for float16"]


def test_float32_parts_match_modules_and_names() -> None:
    graph = Graph(foreign("tokens"))
    found = float32_reasons(graph, {}, {"attend*": "by module", "*/Gemm": "by name", "nothing*": "not there"})
    by_module = {name for name, why in found.items() if why == "by module"}
    assert by_module == {node.name for node in graph.nodes if node.output[0].startswith("attend")}
    assert {graph.by_name[name].op_type for name, why in found.items() if why == "by name"} == {"Gemm"}
    assert "not there" not in found.values()
    typed = Graph(to_float16(graph.model, found.keys() - by_module, {"attend*": "by module"}))
    assert typed.elem_type("attend_weights") == TensorProto.FLOAT
    assert typed.elem_type("mlp_norm") == TensorProto.FLOAT16


def test_parts_that_are_float16_already_are_converted_with_the_rest() -> None:
    text = """g (float[batch,8] x) => (float[batch,8] y) {
        half = Cast <to = 10> (x)  sum = Add (half, one)  wide = Cast <to = 1> (sum)  y = Mul (wide, two)
    }"""
    model = parsed(text, {"one": np.ones(8, np.float16), "two": np.float32(2)})
    for kept in ([], ["sum/Add_sum"]):
        typed = to_float16(model, kept)
        assert Graph(typed).elem_type("sum") == (TensorProto.FLOAT if kept else TensorProto.FLOAT16)
        x = np.arange(8, dtype=np.float32)[None]
        assert np.array_equal(run(typed, {"x": x})[0], (x + 1) * 2)


@EVERY_GRAPH
def test_float16_graph_is_valid_and_close(name: str) -> None:
    model = foreign(name)
    found = quantize(model, TENSORRT_FP16, {}, maxima(name))
    onnx.checker.check_model(found.model, full_check=True)
    assert np.abs(probability(found.model) - probability(model)).max() < 2e-3


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("stride", "size"), [(1, 9), (2, 9), (2, 8), (3, 8)])
def test_rows_of_a_convolution_with_automatic_padding(padding: str, stride: int, size: int) -> None:
    text = f"""g (float[1,3,{size},{size}] x) => (float[1,5,h,w] y) {{
        y = Conv <auto_pad = "{padding}", strides = [{stride}, {stride}], dilations = [2, 1]> (x, w) }}"""
    rng = np.random.default_rng(3)
    weight, x = (rng.standard_normal(s).astype(np.float32) for s in ((5, 3, 3, 2), (1, 3, size, size)))
    if padding != "VALID":  # ONNX Runtime accepts no dilation with SAME
        text = text.replace("[2, 1]", "[1, 1]")
    model = parsed(text, {"w": weight})
    rows = sampled_rows(model.graph.node[0], x, (3, 2), 10_000, 0)
    expected = run(model, {"x": x})[0][0].reshape(5, -1).T
    np.testing.assert_allclose(rows @ as_matrix(weight, 0), expected, atol=1e-5)


def test_bias_of_a_gemm_is_corrected_unless_it_is_scaled() -> None:
    graph = Graph(foreign("tokens"))
    by_output = {node.output[0]: node for node in graph.nodes}
    assert bias_of(graph, by_output["mlp_wide"]) == (by_output["mlp_wide"].name, 2)
    assert bias_of(graph, by_output["mlp_narrow"]) is None  # alpha is 0.5


def test_a_gate_of_one_channel_is_not_taken_for_the_logit() -> None:
    text = """g (float[batch,4,8,8] x) => (float[batch,4,8,8] y) {
        logit = Conv (x, w, b)  gate = Sigmoid (logit)  y = Mul (x, gate)
    }"""
    weights = {"w": np.ones((1, 4, 1, 1), np.float32), "b": np.ones(1, np.float32)}
    assert logit_operator(Graph(parsed(text, weights))) is None
    last = parsed(
        text.replace("Mul (x, gate)", "Identity (gate)").replace("[batch,4,8,8] y", "[batch,1,8,8] y"), weights
    )
    found = logit_operator(Graph(last))
    assert found is not None and found.output[0] == "logit"


@pytest.mark.parametrize("name", ["unet", "mobile", "tokens"])
@pytest.mark.parametrize("recipe", [CPU, TENSORRT], ids=lambda recipe: recipe.name)
def test_every_repair_runs_and_what_is_kept_is_better(name: str, recipe: Recipe) -> None:
    model, recipe = foreign(name), replace(recipe, float16=False)
    expected = probability(model)

    def decide(candidate: onnx.ModelProto) -> Score:
        found = probability(candidate)
        return Score(float(np.abs(found - expected).mean()), float(((found > 0.5) == (expected > 0.5)).mean()))

    found = repair(
        model, INTERFACE, tiles(), recipe, ranges_of=lambda m: ranges_of(m, recipe), absolute_maxima=maxima(name),
        decide=decide, float32_scopes={"head*": "a reason"},
    )  # fmt: skip
    assert [attempt.name for attempt in found.attempts] == ["bias", "smoothing", "rounding"]
    assert any(attempt.kept for attempt in found.attempts)
    assert found.score.mean < found.attempts[0].before.mean
    assert found.inputs.float32_scopes == {"head*": "a reason"}, "a float16 graph made from these needs them"


@EVERY_GRAPH
@pytest.mark.parametrize("names", ["paths", "numbers"])
def test_groups_of_accuracy_control(name: str, names: str) -> None:
    graph = Graph(foreign(name, names))  # type: ignore[arg-type]
    sites = quantizer_sites(graph, replace(CPU, rules=EVERYTHING_RULES))
    groups = groups_of(graph, sites)
    assert groups == groups_of(Graph(foreign(name, names)), sites)  # type: ignore[arg-type]
    assert sorted(node for group in groups for node in group.nodes) == sorted(site.node for site in sites)
    assert len({group.name for group in groups}) == len(groups)
    largest = LARGEST_SHARE * sum(group.multiply_adds for group in groups)
    weights = {site.node: getattr(site, "weight", site.node) for site in sites}
    assert all(g.multiply_adds <= largest or len({weights[node] for node in g.nodes}) == 1 for g in groups)
    assert sum(group.multiply_adds for group in groups) == sum(graph.macs(graph.by_name[s.node]) for s in sites)


def test_modules_are_taken_apart_until_they_are_small_and_others_form_blocks() -> None:
    scopes = {
        "a1": "encoder.big.x", "a2": "encoder.big.y", "b1": "encoder.small.x", "b2": "encoder.small.y",
        "c1": "", "c2": "", "c3": "", "c4": "",
    }  # fmt: skip
    costs = dict(zip(scopes, (400, 400, 10, 10, 10, 10, 30, 0), strict=True))
    assert balanced_names(scopes, costs) == {
        "a1": "encoder.big.x", "a2": "encoder.big.y", "b1": "encoder.small", "b2": "encoder.small",
        "c1": "c1 to c2", "c2": "c1 to c2", "c3": "c3 to c4", "c4": "c3 to c4",
    }  # fmt: skip


@pytest.mark.parametrize("recipe", [CPU, OPENVINO, TENSORRT], ids=lambda recipe: recipe.name)
def test_dates_that_pass_shared_weights_have_the_same_ranges_so_that_equal_dates_stay_equal(recipe: Recipe) -> None:
    model, recipe = foreign("mobile"), replace(recipe, float16=False)
    graph = Graph(model)
    twins = date_twins(graph, quantizer_sites(graph, recipe))
    assert twins.items() >= {"two_scaled": "one_scaled"}.items()
    assert all(name.startswith("two_") and twin == name.replace("two_", "one_") for name, twin in twins.items())
    found = ranges_of(model, recipe)
    same = {**found, **{name: found[twin] for name, twin in twins.items()}}
    before, _ = images(2)
    differences = [
        run(quantize(model, recipe, ranges, {}).model, {"before": before, "after": before}, ["compare_size"])[0].max()
        for ranges in (same, {**found, "two_scaled": Range(0.0, 0.7 * found["two_scaled"].high)})
    ]
    assert differences[0] == 0 < differences[1]


def test_dates_in_one_batch_and_weights_of_other_roles_have_no_twins() -> None:
    for model in (two_branch(), foreign("tokens"), foreign("unet")):  # two_branch: a weight reads a guide and a map
        assert date_twins(Graph(model), quantizer_sites(Graph(model), CPU)) == {}


def test_operators_of_both_dates_with_one_weight_are_one_group() -> None:
    graph = Graph(foreign("mobile"))
    groups = groups_of(graph, quantizer_sites(graph, CPU))
    owner = {graph.by_name[node].output[0]: group.name for group in groups for node in group.nodes}
    assert owner["one_project"] == owner["two_project"]


def test_weights_that_two_dates_share_are_quantized_once_for_each_scale() -> None:
    """Without a bias, scales of a weight depend on nothing else, so both dates read one quantized weight."""
    model = foreign("mobile")
    found = quantize(model, OPENVINO, ranges_of(model, OPENVINO), {})
    names = [
        item.name
        for item in found.model.graph.initializer
        if item.data_type == TensorProto.INT8 and len(item.dims) == 4
    ]
    assert len(names) == len(
        {numpy_helper.to_array(i).tobytes() for i in found.model.graph.initializer if i.name in names}
    )
