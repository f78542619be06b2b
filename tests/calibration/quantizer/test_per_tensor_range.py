"""Tests the choice of a calibrator for each tensor on graphs where the best choice is known from the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="calibration needs the [export] extra")

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.per_tensor_range import PerTensor, choose_per_tensor
from misgnet_calibration.quantizer.placement import activations, quantizer_sites
from misgnet_calibration.quantizer.recipes import CPU, OPENVINO, TENSORRT, Recipe
from misgnet_calibration.statistics.calibrators import CANDIDATES, DEFAULT, MAX, Calibrator, percentile
from misgnet_calibration.statistics.observers import Range
from misgnet_export.pipeline.calibrate import observe
from misgnet_runtime.bundle.manifest import Interface
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import TileSet
from support.graphs import SIDE, parsed, two_branch, write_tiles

INTERFACE = Interface(SIDE, 8)
NARROW = percentile(50)
TWIN = Calibrator("twin", MAX.choose)
# 32 channels of noise around 0; the range of the last one is 50 times as wide.
_GRAPH = """
outlier (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,1024,64] probability) {
    first = Cast <to = 1> (before)
    second = Cast <to = 1> (after)
    size = Sub (first, second)
    flat = Reshape (size, to_tokens)
    wide = MatMul (flat, widen)
    probability = MatMul (wide, weight)
}
"""
# The same 32 channels as a map that a depthwise convolution reads.
_DEPTHWISE = """
deep (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,32,32,32] probability) {
    first = Cast <to = 1> (before)
    second = Cast <to = 1> (after)
    size = Sub (first, second)
    map = Transpose <perm = [0, 3, 1, 2]> (size)
    wide = Conv (map, widen)
    probability = Conv <group = 32, pads = [1, 1, 1, 1]> (wide, weight)
}
"""
WIDE = Range(-20_000.0, 20_000.0)
TIGHT = Range(-400.0, 400.0)


def outlier(weight_of_outlier: float):
    rng = np.random.default_rng(0)
    widen = rng.standard_normal((3, 32)).astype(np.float32)
    widen[:, -1] *= 50
    weight = rng.standard_normal((32, 64)).astype(np.float32)
    weight[-1] *= weight_of_outlier
    constants = {"to_tokens": [0, 1024, 3], "widen": widen, "weight": weight}
    return parsed(_GRAPH, constants)


def depthwise(weight_of_outlier: float):
    rng = np.random.default_rng(0)
    widen = rng.standard_normal((32, 3, 1, 1)).astype(np.float32)
    widen[-1] *= 50
    weight = rng.standard_normal((32, 1, 3, 3)).astype(np.float32)
    weight[-1] *= weight_of_outlier
    return parsed(_DEPTHWISE, {"widen": widen, "weight": weight})


@pytest.fixture
def tiles(tmp_path: Path) -> TileSet:
    return TileSet.open(write_tiles(tmp_path / "tiles", 6), SIDE)


def chosen(model, tiles: TileSet, candidates: dict[Calibrator, Range], recipe: Recipe = TENSORRT) -> PerTensor:
    sites = [p for p in quantizer_sites(Graph(model), recipe) if p.activation == "wide"]
    assert sites
    ranges = {calibrator: {"wide": found} for calibrator, found in candidates.items()}
    return choose_per_tensor(model, INTERFACE, tiles, sites, recipe, candidates=ranges)


@pytest.mark.parametrize(("weight", "expected"), [(0.0, NARROW), (1.0, MAX)], ids=["ignored", "read"])
@pytest.mark.parametrize(("make", "recipe"), [(outlier, TENSORRT), (depthwise, OPENVINO)])
def test_outlier_is_clipped_only_if_its_weights_are_zero(tiles, make, recipe, weight, expected) -> None:
    """The tensor is equal in both cases; only the weights that it is multiplied with differ."""
    found = chosen(make(weight), tiles, {MAX: WIDE, NARROW: TIGHT}, recipe)
    assert found.of("wide") is expected


def test_first_of_equal_candidates_is_chosen(tiles) -> None:
    assert chosen(outlier(1.0), tiles, {TWIN: WIDE, MAX: WIDE}).of("wide") is TWIN


@pytest.mark.parametrize("recipe", [CPU, TENSORRT], ids=lambda recipe: recipe.name)
def test_every_activation_gets_the_range_of_its_calibrator(tiles, recipe) -> None:
    model = two_branch()
    observed = observe(model, INTERFACE, tiles, [recipe])
    ranges = {
        calibrator: observed.ranges(calibrator, symmetric=recipe.symmetric_activations) for calibrator in CANDIDATES
    }
    sites = quantizer_sites(Graph(model), recipe)
    found = choose_per_tensor(model, INTERFACE, tiles, sites, recipe, candidates=ranges)
    assert set(found.chosen) == set(activations(sites))
    mixed = observed.ranges(found, symmetric=recipe.symmetric_activations)
    assert all(mixed[name] == ranges[calibrator][name] for name, calibrator in found.chosen.items())


def test_text_counts_calibrators_and_unknown_tensors_use_the_default() -> None:
    found = PerTensor({"a": MAX, "b": NARROW, "c": MAX})
    assert str(found) == "per-tensor: 2 max, 1 percentile 50"
    assert found.of("elsewhere") is DEFAULT


def test_nan_error_names_the_tile(tiles) -> None:
    model = outlier(1.0)
    broken = np.full((3, 32), np.nan, np.float32)
    next(i for i in model.graph.initializer if i.name == "widen").CopyFrom(
        onnx.numpy_helper.from_array(broken, "widen")
    )
    with pytest.raises(InputError, match=r"pair_000.*'wide'"):
        chosen(model, tiles, {MAX: WIDE})
