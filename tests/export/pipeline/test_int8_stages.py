"""Tests the INT8 stages of a recipe: decisions on validation tiles, and when repairs and accuracy control run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from rich.console import Console

pytest.importorskip("onnxsim", reason="the compiler needs the [export] extra")
pytest.importorskip("torch", reason="the compiler needs the [export] extra")

from misgnet_calibration.algorithms.accuracy_control import NO_NUMBERS
from misgnet_calibration.quantizer.known_modules import MISGNET, UNKNOWN
from misgnet_calibration.quantizer.recipes import CPU, TENSORRT, TENSORRT_FP16, Recipe
from misgnet_calibration.quantizer.rules import EVERYTHING_RULES
from misgnet_calibration.statistics.cache import ActivationStatistics, StatisticsKey
from misgnet_calibration.statistics.observers import Histogram
from misgnet_export.pipeline.agreement import predictions_of
from misgnet_export.pipeline.calibrate import Calibrated, observe, observe_or_reuse
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.quantization_record import quantization_entry
from misgnet_export.pipeline.quantize import RecipeGraph, _usual_differing, limit_of, quantize_recipe
from misgnet_export.pipeline.validation_loss import Decision
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.bundle.manifest import Interface
from misgnet_runtime.raster.dataset import Tile, TileSet
from support.builds import context_of, request_of
from support.graphs import parsed, write_tiles
from support.logs import Collected

INTERFACE = Interface(32, 4)
REQUEST = request_of(repair="never")
BOTH = pytest.mark.parametrize("recipe", [CPU, TENSORRT], ids=lambda recipe: recipe.name)
_GRAPH = """
change (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,32,32] probability) {
    stem_first = Cast <to = 1> (before)
    stem_second = Cast <to = 1> (after)
    stem_difference = Sub (stem_first, stem_second)
    stem_size = Abs (stem_difference)
    stem_nchw = Transpose <perm = [0, 3, 1, 2]> (stem_size)
    stem_scaled = Mul (stem_nchw, gain)
    stem_conv = Conv <pads = [1, 1, 1, 1]> (stem_scaled, stem_w)
    stem_relu = Relu (stem_conv)
    one_conv = Conv <pads = [1, 1, 1, 1]> (stem_relu, one_w, one_b)
    one_relu = Relu (one_conv)
    two_conv = Conv <pads = [1, 1, 1, 1]> (one_relu, two_w, two_b)
    two_relu = Relu (two_conv)
    head_conv = Conv (two_relu, head_w, head_b)
    head_map = Squeeze (head_conv, axis)
    probability = Sigmoid (head_map)
}
"""


def change_graph(seed: int = 0) -> onnx.ModelProto:
    """Makes a graph with convolutions of 16 to 32 to 32 channels; stem and head have too few channels for INT8."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "gain": np.float32(1 / 64), "stem_w": weight(16, 3, 3, 3), "one_w": weight(32, 16, 3, 3),
        "one_b": weight(32, 1)[:, 0] / 4, "two_w": weight(32, 32, 3, 3), "two_b": weight(32, 1)[:, 0] / 4,
        "head_w": 4 * weight(1, 32, 1, 1), "head_b": np.zeros(1, np.float32), "axis": np.array([1]),
    }  # fmt: skip
    return parsed(_GRAPH, constants)


def write(root: Path, count: int, seed: int) -> TileSet:
    """Writes random pairs whose labels are the float graph's masks with one pixel in fifty inverted."""
    write_tiles(root, count, seed)
    noise, files = np.random.default_rng(seed), sorted((root / "label").iterdir())
    found = predictions_of(change_graph(), INTERFACE, list(TileSet.open(root, 32).tiles()))
    for file, prediction in zip(files, found, strict=True):
        label = (prediction > 0.5) ^ (noise.random(prediction.shape) < 0.02)
        Image.fromarray(np.where(label, 255, 0).astype(np.uint8)).save(file)
    return TileSet.open(root, 32)


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises the pixel limit: a random network is near the threshold everywhere, so INT8 changes 0.8 % of pixels."""
    monkeypatch.setattr("misgnet_export.pipeline.quantize._DIFFERING", 0.015)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Collected:
    found = Collected()
    monkeypatch.setattr("misgnet_export.pipeline.quantize.current", lambda: found.log)
    return found


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> tuple[TileSet, TileSet]:
    folder = tmp_path_factory.mktemp("tiles")
    return write(folder / "calib", 16, 1), write(folder / "val", 12, 2)


def calibrated(
    tiles: tuple[TileSet, TileSet], *, broken: str | None = None, decide: bool = True,
    recipes: Sequence[Recipe] = (CPU, TENSORRT), model: onnx.ModelProto | None = None,
) -> Calibrated:  # fmt: skip
    """Calibrates; ``broken`` names an activation to whose statistics one absurd value is added."""
    model = model or change_graph()
    observed = observe(model, INTERFACE, tiles[0], list(recipes))
    if broken:
        wild = Histogram()
        wild.observe(np.array([400.0 * observed.histograms[broken].high], np.float32))
        wild.counts += observed.histograms[broken].counts
        observed = ActivationStatistics({**observed.histograms, broken: wild}, observed.absolute_maxima)
    decision = Decision.of(model, INTERFACE, tiles[1], 0.5, lambda *_: None) if decide else None
    predictions = predictions_of(model, INTERFACE, check_tiles(tiles[0]))
    return Calibrated(
        model=model, predictions=predictions, interface=INTERFACE, observed=observed, calib=tiles[0], decision=decision
    )


def check_tiles(calib: TileSet) -> list[Tile]:
    return list(calib.subset(range(4)).tiles())


def run(start: Calibrated, recipe: Recipe, **changed: object) -> tuple[RecipeGraph, str]:
    text = io.StringIO()
    log = StageLog(Console(file=text, width=200))
    context = context_of(replace(REQUEST, **changed), check_tiles=check_tiles(start.calib), log=log)
    return quantize_recipe(context, start, recipe), text.getvalue()


@BOTH
def test_good_graph_needs_neither_repair_nor_control(recipe: Recipe, tiles) -> None:
    found, text = run(calibrated(tiles), recipe, repair="auto", max_f1_drop=3.0)
    assert not found.repairs and found.control is None
    assert len(found.quantized.sites) == 2 and len(found.tried) >= 4
    assert "repair" not in text and "control" not in text


def test_default_calibrator_is_used_without_validation_set(tiles) -> None:
    found, _ = run(calibrated(tiles, decide=False), CPU, repair="always")
    assert found.calibrator.name == "percentile 99.999" and not found.tried and not found.repairs


@BOTH
def test_control_finds_and_reports_the_broken_operator(recipe: Recipe, tiles) -> None:
    found, text = run(calibrated(tiles, broken="one_relu"), recipe, observer="max", max_f1_drop=3.0)
    assert found.control is not None and found.control.passed
    kept = {site.node for site in found.quantized.sites}
    assert "two/Conv_two_conv" not in kept  # it reads the broken activation
    assert not kept or kept == {"one/Conv_one_conv"}
    assert "accuracy control" in text and "reverted to float" in text
    if recipe is CPU:
        assert found.control_speed is not None and found.control_speed.ratio > 0
        assert f", {found.control_speed.ratio:.2f} times the speed in onnxruntime" in text
    else:
        assert found.control_speed is None, "no engine of a CPU opens this graph"
    entry = quantization_entry("graphs/int8.onnx", recipe, found, change_graph())
    reverted = {item.node for item in entry.placement if item.rule == "reverted"}
    assert "two/Conv_two_conv" in reverted and entry.shares()["int8"] == pytest.approx(found.quantized.int8_share)


@BOTH
def test_control_fixes_a_graph_with_all_operators_in_int8(recipe: Recipe, tiles) -> None:
    """The input of the sigmoid is broken: operators without weights go back to float, and few others."""
    everything = replace(recipe, rules=EVERYTHING_RULES)
    start = calibrated(tiles, broken="head_map", recipes=[everything])
    found, text = run(start, everything, observer="max", max_f1_drop=3.0)
    assert found.control is not None and found.control.passed
    assert found.control.steps[0].measurement.agreement < 0.9, "the fully quantized graph must be bad"
    assert found.quantized.int8_share > 0.5 and "unweighted" in text
    entry = quantization_entry("graphs/int8.onnx", everything, found, change_graph())
    reverted = {item.operator for item in entry.placement if item.rule == "reverted at no cost"}
    assert {"Sigmoid", "Relu", "Mul"} <= reverted


def test_control_can_be_disabled(tiles, logged) -> None:
    run(calibrated(tiles, broken="one_relu"), CPU, observer="max", control_minutes=0.0)
    (warning,) = logged.warnings
    assert warning.endswith("the gate decides about its engines")
    found, _ = run(calibrated(tiles), CPU, max_f1_drop=-50.0, control_minutes=0.0)
    assert found.control is None and len(found.quantized.sites) == 2


@BOTH
def test_repairs_are_kept_only_if_they_help_and_are_recorded(recipe: Recipe, tiles) -> None:
    start = calibrated(tiles)
    plain, _ = run(start, recipe, max_f1_drop=3.0)
    found, text = run(start, recipe, max_f1_drop=3.0, repair="always")
    assert [attempt.name for attempt in found.repairs] == ["bias", "smoothing", "rounding"]
    assert start.decision is not None
    before, after = (start.decision.loss(graph.quantized.model).agreement.mean for graph in (plain, found))
    assert after <= before
    assert any(attempt.kept for attempt in found.repairs) == (after < before)
    entry = quantization_entry("graphs/int8.onnx", recipe, found, change_graph())
    assert [item.name for item in entry.repairs] == ["bias", "smoothing", "rounding"]
    assert "repair for" in text


def test_requested_calibrator_is_used(tiles) -> None:
    found, _ = run(calibrated(tiles), CPU, observer="percentile 99.5")
    assert found.calibrator.name == "percentile 99.5" and not found.tried


def test_broken_graph_is_reported_and_left_to_the_gate(tiles, logged) -> None:
    start = calibrated(tiles)
    inverted = [1 - prediction for prediction in start.predictions]
    run(replace(start, predictions=inverted), CPU)
    assert logged.warnings[0].startswith("the graph for cpu agrees with the float graph in only")


def test_loss_on_validation_tiles_measures_f1_pixels_and_probability(tiles) -> None:
    start = calibrated(tiles)
    assert start.decision is not None
    same = start.decision.loss(start.model).measurement
    assert (same.f1_drop, same.agreement, same.logit_error) == (0, 1, 0)
    other = start.decision.loss(change_graph(seed=5)).measurement
    assert other.f1_drop is not None and other.f1_drop > 5 and other.agreement < 0.95 and other.logit_error > 0.05
    nan = change_graph()
    for item in nan.graph.initializer:
        if item.name == "head_b":
            item.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan], np.float32), "head_b"))
    assert start.decision.loss(nan).measurement == NO_NUMBERS


def test_half_of_the_allowed_drop_is_reserved() -> None:
    half = limit_of(F1Limit(max_f1_drop=0.5), 0.8)
    assert half.points == 0.25 and half.agreement == 0.985
    assert limit_of(F1Limit(max_f1_drop=40.0), 0.8).agreement == pytest.approx(0.98)
    assert [limit_of(F1Limit(max_f1_drop=drop), 0.8).points for drop in (-1.0, 0.0)] == [-1, 0]


def test_ratio_allows_points_in_proportion_to_the_float_f1_on_the_validation_tiles() -> None:
    assert limit_of(F1Limit(min_f1_ratio=0.999), 0.82).points == pytest.approx(0.041)
    assert limit_of(F1Limit(min_f1_ratio=0.999), None).points == pytest.approx(0.05), "no label has change"
    assert limit_of(F1Limit(min_f1_ratio=1.0), 0.82).points == 0


def test_strict_gate_allows_fewer_differing_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("misgnet_export.pipeline.quantize._DIFFERING", 0.002)
    drops = (-1.0, 0.1, 0.125, 0.25, 0.4, 0.5, 2.0)
    assert [limit_of(F1Limit(max_f1_drop=drop), None).agreement for drop in drops] == pytest.approx(
        [0.9993, 0.9993, 0.9993, 0.999, 0.9984, 0.998, 0.998]
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_pixels_that_the_float_graph_hardly_decides_may_differ_in_unknown_networks(tiles, labelled: bool) -> None:
    """If labels hold no change, the gate itself limits differing pixels, so only few may differ."""
    decision = calibrated(tiles).decision
    assert decision is not None
    near = np.full((32, 32), 0.9, np.float32)
    near[0, :10] = np.linspace(0.491, 0.509, 10)  # 10 of 1024 pixels
    shown = [replace(tile, label=tile.label if labelled else np.zeros_like(tile.label)) for tile in decision.tiles]
    decision = replace(decision, tiles=tuple(shown), expected=[near] * len(shown))
    assert decision.undecided(0.01) == pytest.approx(10 / 1024)
    assert _usual_differing(UNKNOWN, decision) == pytest.approx(10 / 1024 if labelled else 0.0007)
    assert _usual_differing(MISGNET, decision) == 0.0007
    blank = replace(decision, expected=[np.full((32, 32), 0.5, np.float32)] * len(shown))
    assert _usual_differing(UNKNOWN, blank) == (0.02 if labelled else 0.0007)
    assert limit_of(F1Limit(max_f1_drop=0.5), 0.8, 0.05).agreement == pytest.approx(0.95)


# FP16


def test_fp16_uses_no_calibrator_repair_or_control(tiles) -> None:
    start = calibrated(tiles)
    found, text = run(start, TENSORRT_FP16, repair="always", max_f1_drop=-50.0)
    assert found.calibrator is None and not found.tried and not found.repairs and found.control is None
    assert "check float16" in text and "no overflow" in text and "times below the limit" in text
    assert "repair" not in text
    assert start.decision is not None and start.decision.loss(found.quantized.model).agreement.mean < 1e-3
    entry = quantization_entry("graphs/float16.onnx", TENSORRT_FP16, found, change_graph())
    assert (entry.quantized_nodes, entry.weight_bits, entry.calibrator) == (0, 16, "none")
    assert entry.shares() == {"int8": 0, "float16": 1, "float32": 0}
    assert {item.rule for item in entry.placement} == {"FP16 requested"}


@pytest.mark.parametrize("recipe", [TENSORRT, TENSORRT_FP16], ids=lambda recipe: recipe.name)
def test_overflow_on_validation_tiles_is_fixed_and_reported(recipe: Recipe, tiles) -> None:
    model = change_graph()
    for name, factor in (("stem_w", 2.0**15), ("head_w", 2.0**-15)):
        item = next(item for item in model.graph.initializer if item.name == name)
        item.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(item) * np.float32(factor), name))
    start = calibrated(tiles, model=model)
    start = replace(
        start,
        observed=ActivationStatistics(start.observed.histograms, dict.fromkeys(start.observed.absolute_maxima, 1.0)),
    )
    found, text = run(start, recipe, max_f1_drop=3.0)
    assert "of them because of overflow" in text
    entry = quantization_entry("graphs/float16.onnx", recipe, found, model)
    by_node = {item.node: item for item in entry.placement}
    assert by_node["stem/Conv_stem_conv"].precision == "float32"
    assert "stem_conv" in by_node["stem/Conv_stem_conv"].rule and "on tile" in by_node["stem/Conv_stem_conv"].rule
    assert "stem/Conv_stem_conv" in entry.float32_nodes


def test_fp16_collects_absolute_maxima_without_ranges_and_reuses_them(tiles, tmp_path: Path) -> None:
    model, key, steps = change_graph(), StatisticsKey("t", "w", "g"), []

    def observed(*recipes: Recipe) -> tuple[ActivationStatistics, str]:
        now = partial(observe, model, INTERFACE, tiles[0], list(recipes), lambda *step: steps.append(step))
        return observe_or_reuse(tmp_path / "seen.npz", key, model, list(recipes), now)

    found, word = observed(TENSORRT_FP16)
    assert not found.histograms and found.absolute_maxima and not steps and word == "nothing saved yet"
    again, word = observed(TENSORRT_FP16)
    assert (again.histograms, again.absolute_maxima, word) == ({}, found.absolute_maxima, "reused")
    more, word = observed(TENSORRT_FP16, CPU)
    assert more.histograms and steps and word == "saved for other targets"
    assert observed(TENSORRT_FP16)[1] == "reused"
