"""Tests repairs of INT8 graphs: on constructed graphs with a known gain, and kept only if they help."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import repeat

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from misgnet_calibration.algorithms.bias_correction import correct_bias, logit_operator, logit_shift, shrunken_mean
from misgnet_calibration.algorithms.improve import Score, is_better, repair
from misgnet_calibration.algorithms.layer_norms import rescaled, scalable_norms
from misgnet_calibration.algorithms.rounding import RoundingError, learn_rounding, round_weights
from misgnet_calibration.algorithms.smooth_quant import best_alpha, smooth, smoothing_factors
from misgnet_calibration.onnx_graph.edits import bias_of, with_bias
from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.checks import check_tensorrt_rules
from misgnet_calibration.quantizer.conv_rows import as_matrix, from_matrix, sampled_rows
from misgnet_calibration.quantizer.placement import activations, int8_share, quantizer_sites, weighted
from misgnet_calibration.quantizer.quantize import QuantizationInputs, quantize
from misgnet_calibration.quantizer.recipes import CPU, TENSORRT, Recipe
from misgnet_calibration.quantizer.rules import EVERYTHING_RULES
from misgnet_calibration.statistics.collect import absolute_maxima, collect
from misgnet_calibration.statistics.intermediate import spread_tiles, tile_activations
from misgnet_calibration.statistics.observers import Histogram, Range
from misgnet_runtime.bundle.manifest import Interface
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import TileSet
from support.graphs import SIDE, images, parsed, two_branch, write_tiles

INTERFACE = Interface(SIDE, 8)
RECIPES = pytest.mark.parametrize("recipe", [CPU, TENSORRT], ids=lambda recipe: recipe.name)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> TileSet:
    return TileSet.open(write_tiles(tmp_path_factory.mktemp("tiles"), 8), SIDE)


def changed(model: onnx.ModelProto, **values: NDArray[np.float32]) -> onnx.ModelProto:
    """Returns ``model`` with other values for some constants."""
    for name, value in values.items():
        item = next(item for item in model.graph.initializer if item.name == name)
        item.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return model


def with_outliers() -> onnx.ModelProto:
    """Returns a graph in which three channels of a norm are up to 60 times the others, and their weights small."""
    model = two_branch()
    norm_w, linear_w = np.ones(32, np.float32), Graph(model).constant("linear_w").copy()
    norm_w[[3, 11, 20]] = [60, 40, 50]
    linear_w[[3, 11, 20]] /= 50
    return changed(model, norm_w=norm_w, linear_w=linear_w)


CHAIN = """
chain (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,256,128] y) {
    real = Cast <to = 1> (before)
    nchw = Transpose <perm = [0, 3, 1, 2]> (real)
    scaled = Mul (nchw, gain)
    stem = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (scaled, stem_w)
    relu = Relu (stem)
    conv = Conv <pads = [1, 1, 1, 1]> (relu, conv_w, conv_b)
    active = Relu (conv)
    flat = Reshape (active, to_tokens)
    tokens = Transpose <perm = [0, 2, 1]> (flat)
    norm = LayerNormalization <axis = -1> (tokens, norm_w, norm_b)
    product = MatMul (norm, linear_w)
    y = Add (product, linear_b)
}
"""


def with_biased_rounding(recipe: Recipe) -> onnx.ModelProto:
    """Returns a convolution and a linear layer with positive inputs, whose weights are all just above half a step."""
    rng = np.random.default_rng(0)
    last = 2 ** (recipe.weight_bits - 1) - 1
    conv, linear = (rng.integers(1, 9, shape) + 0.55 for shape in ((32, 16, 3, 3), (32, 128)))
    conv[:, 0, 0, 0] = linear[0] = last  # so that a step is 1 in every channel
    constants = {
        "gain": 1 / 64, "stem_w": rng.uniform(0, 0.3, (16, 3, 3, 3)), "conv_w": conv / 256, "conv_b": np.zeros(32),
        "norm_w": np.ones(32), "norm_b": np.full(32, 2.0), "linear_w": linear / 64, "linear_b": np.zeros(128),
    }  # fmt: skip
    return parsed(CHAIN, {k: np.float32(v) for k, v in constants.items()} | {"to_tokens": [0, 32, 256]})


def ranges_on(tiles: TileSet, recipe: Recipe) -> Callable[[onnx.ModelProto], dict[str, Range]]:
    def ranges_of(model: onnx.ModelProto) -> dict[str, Range]:
        observers = {name: Histogram() for name in activations(quantizer_sites(Graph(model), recipe))}
        collect(model, INTERFACE, tiles, observers)
        return {name: histogram.percentile(1.0) for name, histogram in observers.items()}

    return ranges_of


def inputs_of(model: onnx.ModelProto, tiles: TileSet, recipe: Recipe) -> QuantizationInputs:
    return QuantizationInputs(model=model, ranges=ranges_on(tiles, recipe)(model), absolute_maxima={})


def run(model: onnx.ModelProto) -> NDArray[np.float32]:
    """Returns all outputs, concatenated, (N,)."""
    before, after = images(8, seed=1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([output.ravel() for output in session.run(None, {"before": before, "after": after})])


def error(model: onnx.ModelProto, quantized: onnx.ModelProto) -> float:
    return float(np.abs(run(model) - run(quantized)).mean())


def node_named(model: onnx.ModelProto, output: str) -> str:
    return next(node.name for node in model.graph.node if output in node.output)


# Smoothing

ATTENTION = """
g (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,64,16] y, float[batch,16,SIDE,SIDE] z) {
    real = Cast <to = 1> (before)
    tokens = Reshape (real, to_tokens)
    norm = LayerNormalization <axis = -1> (tokens, norm_w, norm_b)
    q = MatMul (norm, q_w)
    y = Add (q, q_b)
    turned = Transpose <perm = [0, 2, 1]> (norm)
    map = Reshape (turned, to_map)
    z = Conv <strides = [STRIDES]> (map, sr_w)
    EXTRA
}"""


def attention(extra: str = "", strides: str = "2, 2", side: int = 4) -> onnx.ModelProto:
    """Returns a norm read by a linear layer and by a convolution after Transpose and Reshape, as in the encoder."""
    rng = np.random.default_rng(0)
    norm_w = rng.uniform(0.5, 2, 48).astype(np.float32)
    norm_w[5] = 30
    shapes = {"q_w": (48, 16), "q_b": (16,), "sr_w": (16, 48, 2, 2), "norm_b": (48,)}
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    constants |= {"norm_w": norm_w, "to_tokens": [0, 64, 48], "to_map": [0, 48, 8, 8]}
    text = ATTENTION.replace("EXTRA", extra).replace("STRIDES", strides).replace("SIDE", str(side))
    return parsed(text, constants)


def test_the_readers_of_a_norm_are_found_after_layout_nodes():
    model = attention()
    (norm,) = scalable_norms(Graph(model), {node_named(model, "q")})
    assert norm.tensors == ("norm", "turned", "map")
    found = {reader.node: (reader.activation, reader.input_axis) for reader in norm.readers}
    assert found == {node_named(model, "q"): ("norm", 0), node_named(model, "z"): ("map", 1)}
    assert scalable_norms(Graph(model), set()) == [], "no gain if no reader is quantized"


@pytest.mark.parametrize(
    "extra", ["r = Relu (norm)", "r = Add (tokens, norm)", "r = Relu (map)", "r = MatMul (norm, turned)"]
)
def test_a_norm_with_other_readers_is_not_changed(extra):
    model = attention(extra)
    assert scalable_norms(Graph(model), {node_named(model, "q")}) == []


def test_rescaling_a_norm_keeps_the_function():
    model = attention()
    norms = scalable_norms(Graph(model), {node_named(model, "q")})
    factors = np.random.default_rng(1).uniform(0.1, 10, 48).astype(np.float32)
    expected, found = run(model), run(rescaled(model, norms, {norms[0].node: factors}))
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


def test_a_weight_that_two_norms_share_becomes_two_weights():
    text = """g (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,64,16] y) {
        real = Cast <to = 1> (before)
        tokens = Reshape (real, to_tokens)
        one = LayerNormalization <axis = -1> (tokens, norm_w)
        two = LayerNormalization <axis = -1> (tokens, norm_w)
        a = MatMul (one, w)  b = MatMul (two, w)  y = Add (a, b)
    }"""
    constants = {"norm_w": np.ones(48, np.float32), "w": np.ones((48, 16), np.float32), "to_tokens": [0, 64, 48]}
    model = parsed(text, constants)
    norms = scalable_norms(Graph(model), {node_named(model, "a"), node_named(model, "b")})
    factors = {norm.node: np.full(48, by, np.float32) for norm, by in zip(norms, (2, 5), strict=True)}
    scaled = rescaled(model, norms, factors)
    assert run(scaled) == pytest.approx(run(model), abs=1e-4)
    assert sorted(float(numpy_helper.to_array(i).flat[0]) for i in scaled.graph.initializer if len(i.dims) == 2) == [
        2,
        5,
    ]


@RECIPES
def test_smoothing_keeps_the_float_function_and_lowers_the_error(tiles, recipe):
    model = with_outliers()
    smoothed = smooth(model, INTERFACE, tiles, recipe)
    expected, found = run(model), run(smoothed.model)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    (choice,) = smoothed.choices
    assert choice.alpha is not None
    assert choice.errors[choice.alpha] < 0.1 * choice.errors[None]
    before, after = (inputs_of(m, tiles, recipe).quantize(recipe).model for m in (model, smoothed.model))
    assert error(model, after) < 0.6 * error(model, before)


def test_a_reader_that_stays_float_does_not_affect_alpha(tiles):
    choices = []
    for size in (1, 100):
        model = attention(strides="4, 4", side=2)  # a convolution with four positions stays float
        changed(model, sr_w=Graph(model).constant("sr_w") ** 3 * size)
        smoothed = smooth(model, INTERFACE, tiles, TENSORRT)
        expected, found = run(model), run(smoothed.model)
        assert np.abs(found - expected).max() < 1e-4 * expected.std()
        choices.append(smoothed.choices)
    assert choices[0] == choices[1] != ()


def test_absolute_maxima_of_a_smoothed_norm_equal_measured_ones(tiles):
    smoothed = smooth(with_outliers(), INTERFACE, tiles, TENSORRT)
    measured = absolute_maxima(smoothed.model, INTERFACE, tiles)
    assert dict(smoothed.absolute_maxima) == {"encoder_norm": pytest.approx(measured["encoder_norm"], rel=1e-4)}


def test_factors_are_bounded_and_zero_channels_keep_their_size():
    activation = np.array([0, 1, 1e30, 4, 1], np.float32)
    weight = np.array([1, 0, 1e-30, 1, 4], np.float32)
    factors = smoothing_factors(activation, weight, 0.5)
    assert factors[:2].tolist() == [1, 1]
    assert np.isfinite(factors).all() and (factors > 0).all() and factors.max() <= 64.01
    assert smoothing_factors(np.zeros(4, np.float32), np.ones(4, np.float32), 0.5).tolist() == [1] * 4


def test_factors_equal_those_of_the_paper_up_to_their_mean():
    x, w = np.array([8, 2, 1], np.float32), np.array([0.5, 1, 2], np.float32)
    factors = smoothing_factors(x, w, 0.5)
    assert factors / factors[1] == pytest.approx(np.sqrt(x / w) / np.sqrt(2))
    assert np.log(factors).sum() == pytest.approx(0, abs=1e-6)


def test_the_alpha_with_the_smallest_error_is_chosen_and_a_tie_changes_nothing():
    assert best_alpha({None: 2.0, 0.3: 1.5, 0.6: 1.0}) == 0.6
    assert best_alpha({0.3: 2.0, None: 2.0}) is None


# Rounding


def product_error(weight: NDArray, quantized_values: NDArray, scale: NDArray, moments: NDArray) -> float:
    miss = weight - quantized_values * scale
    return float(np.einsum("ic,ij,jc->", miss, moments, miss))


def nearest_values(weight: NDArray, scale: NDArray) -> NDArray:
    return np.clip(np.rint(weight / scale), -127, 127)


def test_equal_inputs_compensate_each_others_rounding_error():
    weight, scale = np.full((10, 1), 0.4), np.ones(1)  # nearest rounding loses the whole sum
    quantized_values = round_weights(weight, scale, np.ones((10, 10)), 127)
    assert quantized_values.dtype == np.int8
    assert quantized_values.sum() == 4


def test_uncorrelated_inputs_are_rounded_to_the_nearest():
    rng = np.random.default_rng(0)
    weight, scale = rng.standard_normal((300, 8)), rng.uniform(0.01, 0.02, 8)
    quantized_values = round_weights(weight, scale, np.diag(rng.uniform(1, 2, 300)), 127)
    assert np.array_equal(quantized_values, nearest_values(weight, scale))


@pytest.mark.parametrize("size", [40, 128, 300])
def test_correlated_inputs_gain_and_quantized_values_stay_within_the_limit(size):
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((4 * size, size)) @ rng.standard_normal((size, size)) + 2
    moments = mixed.T @ mixed / len(mixed)
    weight = rng.standard_normal((size, 6))
    scale = np.abs(weight).max(axis=0) / 63
    quantized_values = round_weights(weight, scale, moments, 63)
    assert np.abs(quantized_values.astype(int)).max() <= 63
    nearest = product_error(weight, nearest_values(weight, scale), scale, moments)
    assert product_error(weight, quantized_values, scale, moments) < 0.6 * nearest


def test_inputs_that_are_always_zero_are_accepted():
    weight, scale = np.array([[0.4, 1.6], [2.2, -3.4], [0.1, 0.6]]), np.ones(2)
    assert np.array_equal(round_weights(weight, scale, np.zeros((3, 3)), 127), np.rint(weight))
    assert np.array_equal(round_weights(weight, scale, np.diag([0, 1.0, 0]), 127), np.rint(weight))


@RECIPES
def test_learned_values_lower_the_error_of_every_layer_that_uses_them(tiles, recipe):
    given = inputs_of(with_biased_rounding(recipe), tiles, recipe)
    sites = quantizer_sites(Graph(given.model), recipe)
    steps: list[tuple[int, int]] = []
    found = learn_rounding(
        given.model, INTERFACE, tiles, sites, recipe, ranges=given.ranges, progress=lambda *step: steps.append(step)
    )
    assert steps == [(n, 8) for n in range(1, 9)]
    assert [e.node for e in found.errors] == [p.node for p in sites]
    assert set(found.quantized_weights) == {e.node for e in found.errors if e.learned < e.nearest}
    by_node = {e.node: e for e in found.errors}
    conv = by_node[node_named(given.model, "conv")]
    assert conv.learned < 0.1 * conv.nearest
    repaired = replace(given, quantized_weights=found.quantized_weights).quantize(recipe).model
    assert error(given.model, repaired) < 0.5 * error(given.model, given.quantize(recipe).model)


def test_nearest_values_are_kept_if_learning_did_not_help():
    assert RoundingError("n", 2.0, 1.0).kept
    assert not RoundingError("n", 1.0, 1.0).kept
    assert not RoundingError("n", float("nan"), float("nan")).kept


@pytest.mark.parametrize(
    "attributes", ["pads = [1, 0, 2, 1]", "strides = [2, 1]", "dilations = [2, 1], pads = [2,1,2,1]"]
)
def test_a_convolution_equals_the_product_of_its_rows_and_its_matrix(attributes):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 8, 8), (5, 3, 3, 2)))
    model = parsed(f"g (float[2,3,8,8] x) => (float[2,5,h,v] y) {{ y = Conv <{attributes}> (x, w) }}", {"w": w})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = np.moveaxis(session.run(None, {"x": x})[0], 1, -1).reshape(-1, 5)
    rows = sampled_rows(model.graph.node[0], x, (3, 2), 10_000, seed=0)
    assert rows @ as_matrix(w, 0) == pytest.approx(expected, abs=1e-4)
    few = sampled_rows(model.graph.node[0], x, (3, 2), 7, seed=0)
    assert few.shape == (7, 18) and all(row in rows.tolist() for row in few.tolist())
    assert np.array_equal(from_matrix(as_matrix(w, 0), w.shape, 0), w)


# Bias


def means_of(model: onnx.ModelProto, tiles: TileSet, output: str) -> NDArray[np.float64]:
    """Returns the mean of each channel (C,) of a tensor (N, T, C) or (N, C, H, W)."""
    found = np.concatenate([values[output] for values in tile_activations(model, INTERFACE, tiles.tiles(), [output])])
    return found.mean(axis=(0, 2, 3) if found.ndim == 4 else (0, 1), dtype=np.float64)


def test_bias_correction_subtracts_the_mean_error_of_each_operator(tiles):
    given = inputs_of(with_biased_rounding(CPU), tiles, CPU)
    sites = quantizer_sites(Graph(given.model), CPU)
    steps: list[tuple[int, int]] = []
    found = correct_bias(
        given.model, INTERFACE, tiles, sites, CPU, ranges=given.ranges, progress=lambda *step: steps.append(step)
    )
    assert steps[-1] == (8, 8), "one pass of the float graph for all operators"
    assert set(found.corrections) == {p.node for p in sites} and found.without_bias == ()
    before, after = given.quantize(CPU).model, replace(given, bias=found.corrections).quantize(CPU).model
    for name, share in (("conv", 0.1), ("y", 0.5)):  # the norm before y reads noise, whose shift is not that of y
        exact, shifted, left = (means_of(m, tiles, name) for m in (given.model, before, after))
        assert np.abs(left - exact).mean() < share * np.abs(shifted - exact).mean()


LOGITS = """
logits (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,1,32,32] y) {
    real = Cast <to = 1> (before)
    nchw = Transpose <perm = [0, 3, 1, 2]> (real)
    scaled = Mul (nchw, gain)
    stem = Conv (scaled, stem_w)
    conv = Conv <pads = [1, 1, 1, 1]> (stem, conv_w, conv_b)
    softened = Softmax <axis = 1> (conv)
    logit = Conv (softened, head_w, head_b)
    y = Sigmoid (logit)
}
"""


def with_logits(rng: np.random.Generator) -> onnx.ModelProto:
    """Returns a graph whose last operator stays float and makes one logit for each pixel."""
    constants = {
        "gain": 1 / 64, "stem_w": rng.uniform(0, 1, (16, 3, 1, 1)), "conv_w": rng.standard_normal((32, 16, 3, 3)) / 16,
        "conv_b": np.zeros(32), "head_w": rng.uniform(0, 4, (1, 32, 1, 1)), "head_b": np.full(1, -2.0),
    }  # fmt: skip
    return parsed(LOGITS, {k: np.float32(v) for k, v in constants.items()})


def test_shift_of_the_logits_is_corrected_at_the_last_operator_although_it_is_float(tiles):
    model = with_logits(np.random.default_rng(0))
    given = inputs_of(model, tiles, CPU)
    coarse = {name: Range(found.low, 0.6 * found.high) for name, found in given.ranges.items()}
    given = replace(given, ranges=coarse)
    sites = quantizer_sites(Graph(model), CPU)
    head = node_named(model, "logit")
    assert sites and head not in {p.node for p in sites}
    steps: list[tuple[int, int]] = []
    found = correct_bias(
        model, INTERFACE, tiles, sites, CPU, ranges=given.ranges, progress=lambda *step: steps.append(step)
    )
    assert steps[-1] == (16, 16) and found.corrections[head].shape == (1,)
    without = {name: value for name, value in found.corrections.items() if name != head}
    exact, half, whole = (
        means_of(m, tiles, "logit").item()
        for m in (model, *(replace(given, bias=bias).quantize(CPU).model for bias in (without, found.corrections)))
    )
    assert abs(whole - exact) < 0.2 * abs(half - exact)


def test_correction_of_the_output_is_dropped_if_no_operator_is_quantized(tiles):
    model = with_logits(np.random.default_rng(0))
    given = inputs_of(model, tiles, CPU)
    bias = {node_named(model, "logit"): np.full(1, 3, np.float32)}
    everything = frozenset(p.node for p in quantizer_sites(Graph(model), CPU))
    assert error(model, replace(given, bias=bias).quantize(CPU).model) > 0.1
    assert error(model, replace(given, bias=bias, keep_float=everything).quantize(CPU).model) < 1e-3


def test_last_operator_makes_a_logit_only_if_it_has_one_channel():
    assert logit_operator(Graph(with_logits(np.random.default_rng(0)))).output[0] == "logit"
    assert logit_operator(Graph(two_branch())) is None


def test_shift_of_the_logits_counts_undecided_pixels_only_and_is_shrunk():
    exact = [np.array([0.0, 1, -2, 9, -9], np.float32)] * 4
    same = [x + np.float32([0.5, 0.5, 0.5, 7, -7]) for x in exact]
    assert logit_shift(exact, same) == pytest.approx(0.5)
    assert logit_shift(exact, [x + np.float32(s) for x, s in zip(exact, (1, -1, 1, -1), strict=True)]) == 0
    assert 0 < logit_shift(exact, [x + np.float32(s) for x, s in zip(exact, (1, 0, 1, 0.5), strict=True)]) < 0.625
    assert logit_shift(exact[:1], same[:1]) == 0, "one tile has no standard error"
    assert logit_shift([x + 20 for x in exact], [x + 21 for x in exact]) == 0, "every pixel is decided"


@RECIPES
def test_bias_correction_lowers_the_error_of_the_whole_graph(tiles, recipe):
    given = inputs_of(with_biased_rounding(recipe), tiles, recipe)
    sites = quantizer_sites(Graph(given.model), recipe)
    found = correct_bias(given.model, INTERFACE, tiles, sites, recipe, ranges=given.ranges)
    repaired = replace(given, bias=found.corrections).quantize(recipe)
    assert error(given.model, repaired.model) < 0.5 * error(given.model, given.quantize(recipe).model)


def test_operators_without_a_constant_bias_are_named_and_not_changed(tiles):
    given = inputs_of(two_branch(), tiles, TENSORRT)
    sites = quantizer_sites(Graph(given.model), TENSORRT)
    found = correct_bias(given.model, INTERFACE, tiles, sites, TENSORRT, ranges=given.ranges)
    assert set(found.corrections) == {node_named(given.model, n) for n in ("encoder_conv", "encoder_product")}
    assert set(found.without_bias) == {p.node for p in sites} - set(found.corrections)


def test_an_uncertain_mean_is_shrunk_and_a_noisy_one_dropped():
    rng = np.random.default_rng(0)
    found = shrunken_mean(np.stack([np.full(16, 2.0), np.resize([1.0, -1.0], 16), rng.normal(1, 1, 16)], axis=1))
    assert found[0] == 2 and found[1] == 0 and 0.5 < found[2] < 1.5
    assert not shrunken_mean(np.ones((1, 4))).any()


def test_a_shared_bias_is_corrected_for_its_own_operator_only():
    text = """g (float[batch,16,8,8] x) => (float[batch,16,8,8] y) {
        one = Conv (x, w, b)  two = Conv (x, w, b)  y = Add (one, two)
    }"""
    model = parsed(text, {"w": np.ones((16, 16, 1, 1), np.float32), "b": np.ones(16, np.float32)})
    corrected = Graph(with_bias(model, {node_named(model, "two"): np.full(16, 2, np.float32)}))
    one, two = (corrected.constant(corrected.producer[name].input[2]) for name in ("one", "two"))
    assert (one[0], two[0]) == (1, 3)


@pytest.mark.parametrize("bias", [np.ones(16), np.ones((1, 1, 16))])
def test_a_product_uses_the_bias_of_the_following_addition(bias):
    text = "g (float[batch,8,16] x) => (float[batch,8,16] y) { p = MatMul (x, w)  y = Add (b, p) }"
    model = parsed(text, {"w": np.ones((16, 16), np.float32), "b": bias.astype(np.float32)})
    graph = Graph(model)
    assert bias_of(graph, graph.nodes[0]) == (node_named(model, "y"), 0)
    corrected = Graph(with_bias(model, {graph.nodes[0].name: np.full(16, 2, np.float32)}))
    assert corrected.constant("b").shape == bias.shape and (corrected.constant("b") == 3).all()


@pytest.mark.parametrize("bias", [np.ones(1), np.ones((8, 16)), np.ones((8, 1))])
def test_an_addition_that_is_not_per_channel_is_not_a_bias(bias):
    text = "g (float[batch,8,16] x) => (float[batch,8,16] y) { p = MatMul (x, w)  y = Add (p, b) }"
    model = parsed(text, {"w": np.ones((16, 16), np.float32), "b": bias.astype(np.float32)})
    assert bias_of(Graph(model), model.graph.node[0]) is None


# Arguments of quantize


@RECIPES
def test_defaults_write_the_same_graph_bit_for_bit(tiles, recipe):
    given = inputs_of(two_branch(), tiles, recipe)
    plain = quantize(given.model, recipe, given.ranges, {}).model.SerializeToString(deterministic=True)
    assert given.quantize(recipe).model.SerializeToString(deterministic=True) == plain


@RECIPES
def test_nodes_kept_float_are_not_counted_as_quantized(tiles, recipe):
    given = inputs_of(two_branch(), tiles, recipe)
    names = {node_named(given.model, "encoder_product"), node_named(given.model, "encoder_norm")}
    bias = {node_named(given.model, "encoder_product"): np.full(128, 50, np.float32)}
    quantized_values = {node_named(given.model, "encoder_product"): np.zeros((32, 128), np.int8)}
    found = quantize(
        given.model, recipe, given.ranges, {}, keep_float=names, quantized_weights=quantized_values, bias=bias
    )
    graph = Graph(given.model)
    left = [p for p in quantizer_sites(graph, recipe) if p.node not in names]
    assert [p.node for p in found.sites] == [p.node for p in left]
    assert found.int8_share == int8_share(graph, left) < quantize(given.model, recipe, given.ranges, {}).int8_share
    assert error(given.model, found.model) < 0.01, "quantized values and biases of a float node are unused"


@RECIPES
def test_repairs_change_only_operators_with_weights(tiles, recipe):
    everything = replace(recipe, rules=EVERYTHING_RULES)
    model = with_outliers()
    given = inputs_of(model, tiles, everything)
    sites = quantizer_sites(Graph(model), everything)
    assert len(weighted(sites)) < len(sites)
    found = repair(
        model, INTERFACE, tiles, everything, ranges_of=ranges_on(tiles, everything), absolute_maxima={},
        decide=lambda quantized: Score(error(model, quantized), 1.0),
    )  # fmt: skip
    smoothing = next(attempt for attempt in found.attempts if attempt.name == "smoothing")
    assert smoothing.kept
    assert [p.node for p in found.quantized.sites] == [p.node for p in sites]
    assert {*found.inputs.quantized_weights, *found.inputs.bias} <= {p.node for p in weighted(sites)}
    assert error(model, found.quantized.model) < error(model, given.quantize(everything).model)


def test_a_grouped_convolution_keeps_nearest_rounding(tiles):
    text = """g (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,16,32,32] y) {
        cast = Cast <to = 1> (before)
        nchw = Transpose <perm = [0, 3, 1, 2]> (cast)
        stem = Conv (nchw, stem_w)
        y = Conv <group = 16, pads = [1, 1, 1, 1]> (stem, depth_w)
    }"""
    rng = np.random.default_rng(0)
    shapes = {"stem_w": (16, 3, 1, 1), "depth_w": (16, 1, 3, 3)}
    model = parsed(text, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    everything = replace(TENSORRT, rules=EVERYTHING_RULES)
    given = inputs_of(model, tiles, everything)
    sites = quantizer_sites(Graph(model), everything)
    assert len(weighted(sites)) == 2
    found = learn_rounding(model, INTERFACE, tiles, sites, everything, ranges=given.ranges)
    assert [rounding.node for rounding in found.errors] == [node_named(model, "stem")]


def test_an_unknown_node_name_is_an_error(tiles):
    given = inputs_of(two_branch(), tiles, CPU)
    for wrong in ({"keep_float": ["nowhere"]}, {"quantized_weights": {"nowhere": None}}, {"bias": {"nowhere": None}}):
        with pytest.raises(InputError, match="not found among the nodes of the graph, such as 'nowhere'"):
            quantize(given.model, CPU, given.ranges, {}, **wrong)


@pytest.mark.parametrize(
    ("quantized_values", "message"),
    [
        (np.zeros((32, 16), np.int8), r"int8 \(32, 16\); the weight needs int8 \(32, 128\)"),
        (np.zeros((32, 128), np.int32), r"int32 \(32, 128\)"),
        (np.full((32, 128), 64, np.int8), "quantized values beyond 63, which do not fit in 7 bits"),
        (np.zeros((32, 128), np.int8), "steps away from the weight on average"),
    ],
)
def test_quantized_values_of_another_weight_or_recipe_are_refused(tiles, quantized_values, message):
    given = inputs_of(two_branch(), tiles, CPU)
    wrong = replace(given, quantized_weights={node_named(given.model, "encoder_product"): quantized_values})
    with pytest.raises(InputError, match=f"'backbone.block/MatMul_encoder_product' was given .*{message}"):
        wrong.quantize(CPU)


def test_a_shared_weight_gets_separate_values_if_they_were_learned(tiles):
    given = inputs_of(two_branch(), tiles, TENSORRT)
    sites = {p.node: p for p in quantizer_sites(Graph(given.model), TENSORRT)}
    one = sites[node_named(given.model, "decoder_one")]
    found = learn_rounding(given.model, INTERFACE, tiles, [one], TENSORRT, ranges=given.ranges)
    quantized = replace(given, quantized_weights=found.quantized_weights).quantize(TENSORRT).model
    names = [item.name for item in quantized.graph.initializer if "shared_w" in item.name and "levels" in item.name]
    assert len(names) == 1 + len(found.quantized_weights) == 2


# All together


@RECIPES
def test_repairs_are_tried_in_turn_and_follow_the_rules(tiles, recipe):
    model = with_outliers()
    expected = run(model)

    def decide(quantized: onnx.ModelProto) -> Score:
        found = run(quantized)
        return Score(float(np.abs(found - expected).mean()), float(((found > 0.5) == (expected > 0.5)).mean()))

    steps: list[tuple[int, int]] = []
    maxima = absolute_maxima(model, INTERFACE, tiles)
    found = repair(
        model,
        INTERFACE,
        tiles,
        recipe,
        ranges_of=ranges_on(tiles, recipe),
        absolute_maxima=maxima,
        decide=decide,
        progress=lambda *step: steps.append(step),
    )
    assert [a.name for a in found.attempts] == ["bias", "smoothing", "rounding"]
    assert steps[-1] == (300, 300)
    score = found.attempts[0].before
    for attempt in found.attempts:
        assert attempt.before == score and attempt.kept == is_better(attempt.before, attempt.after)
        assert attempt.seconds > 0 and attempt.finding
        score = attempt.after if attempt.kept else score
    assert found.score == score == decide(found.quantized.model)
    assert found.attempts[1].kept and found.score.mean < 0.5 * found.attempts[0].before.mean
    assert len(found.quantized.sites) == 6, "a repair reverts no operator to float"
    assert found.inputs.quantize(recipe).model == found.quantized.model
    if recipe is TENSORRT:
        outputs = {site.output for site in weighted(found.quantized.sites) if site.output}
        check_tensorrt_rules(found.quantized.model, outputs=outputs)


@pytest.mark.parametrize("better", [True, False])
def test_a_repair_is_kept_only_if_the_measurement_improves(tiles, better):
    scores = iter(Score(1.0 - 0.1 * n if better else 1.0, 0.9) for n in range(9))
    plain = inputs_of(with_outliers(), tiles, CPU)
    found = repair(
        with_outliers(),
        INTERFACE,
        tiles,
        CPU,
        ranges_of=ranges_on(tiles, CPU),
        absolute_maxima={},
        decide=lambda _: next(scores),
    )
    assert [a.kept for a in found.attempts] == [better] * 3
    assert (found.inputs.quantized_weights != {}) == (found.inputs.bias != {}) == better
    assert (found.quantized.model == plain.quantize(CPU).model) == (not better)


def test_no_step_follows_a_graph_that_is_good_enough(tiles):
    scores = iter((Score(1.0, 0.9), Score(0.5, 0.9), Score(0.4, 0.95)))
    model = with_outliers()
    common = {"ranges_of": ranges_on(tiles, CPU), "absolute_maxima": {}, "enough": lambda found: found.pixels > 0.94}
    found = repair(model, INTERFACE, tiles, CPU, decide=lambda _: next(scores), **common)
    assert [(a.name, a.kept) for a in found.attempts] == [("bias", True), ("smoothing", True)]
    assert repair(model, INTERFACE, tiles, CPU, decide=lambda _: Score(1, 0.95), **common).attempts == ()


def test_biases_are_corrected_again_for_learned_rounding(tiles):
    model = with_biased_rounding(CPU)
    scores = iter((Score(1.0, 0.9), Score(0.5, 0.9), Score(0.4, 0.9)))
    found = repair(
        model, INTERFACE, tiles, CPU, ranges_of=ranges_on(tiles, CPU), absolute_maxima={},
        decide=lambda _: next(scores), steps=["bias", "rounding"],
    )  # fmt: skip
    sites = quantizer_sites(Graph(model), CPU)
    for weights, same in ((found.inputs.quantized_weights, True), ({}, False)):
        expected = correct_bias(
            model, INTERFACE, tiles, sites, CPU, ranges=found.inputs.ranges, quantized_weights=weights
        ).corrections
        pairs = [(found.inputs.bias[name], value) for name, value in expected.items()]
        assert all(np.array_equal(a, b) for a, b in pairs) == same


def test_steps_and_float_nodes_are_the_callers_choice(tiles):
    model = two_branch()
    kept = node_named(model, "encoder_second")
    found = repair(
        model, INTERFACE, tiles, CPU, ranges_of=ranges_on(tiles, CPU), absolute_maxima={},
        decide=lambda _: Score(1, 1), keep_float=[kept], steps=["rounding"],
    )  # fmt: skip
    assert [a.name for a in found.attempts] == ["rounding"]
    assert found.inputs.keep_float == {kept} and kept not in {p.node for p in found.quantized.sites}


def test_repair_is_kept_if_it_improves_beyond_noise():
    before = Score(0.01, 0.999)
    assert is_better(before, Score(0.009, 0.999))
    assert is_better(before, Score(0.009, 0.999 - 0.5e-5)), "a handful of pixels is noise"
    assert not is_better(before, Score(0.009, 0.998))
    assert not is_better(before, before)
    assert not is_better(before, Score(0.011, 1.0))
    assert not is_better(before, Score(float("nan"), 1.0)) and not is_better(before, Score(0.009, float("nan")))


@pytest.mark.parametrize("step", ["smoothing", "rounding", "bias"])
def test_a_single_tile_repairs_nothing(tiles, step):
    given = inputs_of(two_branch(), tiles, CPU)
    one = tiles.subset([0])
    with pytest.raises(InputError, match=r"1 calibration tile .* needs at least two"):
        repair(
            given.model,
            INTERFACE,
            one,
            CPU,
            ranges_of=lambda _: given.ranges,
            absolute_maxima={},
            decide=lambda _: Score(1, 1),
            steps=[step],
        )


def test_tiles_are_spread_over_the_set(tiles):
    assert [ref.name for ref in spread_tiles(tiles, 3)] == [tiles[i].name for i in (0, 2, 5)]
    assert spread_tiles(tiles, 8) is tiles


def test_nan_in_activations_names_the_tile(tiles):
    given = inputs_of(two_branch(), tiles, CPU)
    broken = changed(two_branch(), gain=np.float32(np.nan))
    sites = quantizer_sites(Graph(broken), CPU)
    for step in (
        lambda: smooth(broken, INTERFACE, tiles, CPU),
        lambda: learn_rounding(broken, INTERFACE, tiles, sites, CPU, ranges=given.ranges),
        lambda: correct_bias(broken, INTERFACE, tiles, sites, CPU, ranges=given.ranges),
    ):
        with pytest.raises(InputError, match=r"calibration tile pair_00[01]@0,0: NaN or Inf among the activations of"):
            step()


@pytest.mark.parametrize("step", ["smoothing", "rounding", "bias"])
def test_memory_does_not_grow_with_the_tiles(tiles, step):
    model, given = with_outliers(), inputs_of(with_outliers(), tiles, CPU)

    def peak(times: int) -> float:
        many = TileSet(tiles.root, tuple(ref for refs in repeat(tuple(tiles), times) for ref in refs), SIDE)
        tracemalloc.start()
        repair(
            model,
            INTERFACE,
            many,
            CPU,
            ranges_of=lambda _: given.ranges,
            absolute_maxima={},
            decide=lambda _: Score(1, 1),
            steps=[step],
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)  # exclude imports and caches
    assert peak(32) < 1.3 * peak(2)


def test_a_repaired_graph_compiles_with_tensorrt_rtx(tiles):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    from misgnet_runtime.engines.tensorrt import PlanOptions, compile_plan

    model = with_outliers()
    scores: Mapping[int, Score] = {n: Score(1 / (n + 1), 1.0) for n in range(4)}
    asked = iter(scores.values())
    maxima = absolute_maxima(model, INTERFACE, tiles)
    found = repair(
        model, INTERFACE, tiles, TENSORRT,
        ranges_of=ranges_on(tiles, TENSORRT), absolute_maxima=maxima, decide=lambda _: next(asked),
    )  # fmt: skip
    assert all(a.kept for a in found.attempts)
    plan = compile_plan(
        found.quantized.model.SerializeToString(), PlanOptions(vendor="rtx", compute_capabilities=("sm86",))
    )
    assert plan.quantize_layers > 0
