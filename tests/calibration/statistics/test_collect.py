"""Tests the drawing of calibration tiles, and runs of the float graph over them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from onnx import numpy_helper

from misgnet_calibration.statistics.collect import absolute_maxima, collect
from misgnet_calibration.statistics.observers import Histogram
from misgnet_calibration.statistics.tile_selection import FewTilesWarning, draw_tiles
from misgnet_runtime.bundle.manifest import Interface
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import TileSet, stack
from support.graphs import SIDE, parsed, two_branch, write_tiles

INTERFACE = Interface(SIDE, 4)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> TileSet:
    return TileSet.open(write_tiles(tmp_path_factory.mktemp("tiles"), 20), SIDE)


def test_too_few_tiles_are_refused(tiles):
    with pytest.raises(InputError, match=r"15 calibration tiles .*at least 16"):
        draw_tiles(tiles, 15, seed=0)
    with pytest.raises(InputError, match="at least 16"):
        draw_tiles(tiles.subset(range(10)), 500, seed=0)


def test_few_tiles_raise_a_warning(tiles):
    with pytest.warns(FewTilesWarning, match="only 16 calibration tiles"):
        draw_tiles(tiles, 16, seed=0)
    many = TileSet(tiles.root, tuple(tiles) * 5, SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(draw_tiles(many, 100, seed=0)) == 100


@pytest.mark.filterwarnings("ignore::misgnet_calibration.statistics.tile_selection.FewTilesWarning")
def test_the_seed_determines_the_tiles(tiles):
    names = [[ref.name for ref in draw_tiles(tiles, 16, seed)] for seed in (3, 3, 4)]
    assert names[0] == names[1] != names[2]
    assert len(set(names[0])) == 16
    assert names[0] == sorted(names[0]), "each image is to be read once"


def test_observers_receive_every_tile(tiles):
    histograms = {"encoder_norm": Histogram(), "probability": Histogram()}
    steps: list[tuple[int, int]] = []
    collect(two_branch(), INTERFACE, tiles, dict(histograms), lambda done, total: steps.append((done, total)))
    assert steps == [(n, 20) for n in range(1, 21)]
    assert histograms["probability"].counts.sum() == 20 * 16 * 16
    assert histograms["encoder_norm"].counts.sum() == 20 * 2 * 256 * 32
    with OnnxRuntimeEngine(two_branch().SerializeToString(), 20) as engine:
        before, after = stack(list(tiles.tiles()))
        (expected,) = engine.infer({"before": before, "after": after}).values()
    assert histograms["probability"].high == pytest.approx(expected.max(), rel=1e-5)


def test_nan_in_a_tensor_names_tensor_and_tile(tiles):
    model = two_branch()
    gain = next(item for item in model.graph.initializer if item.name == "gain")
    gain.CopyFrom(numpy_helper.from_array(np.float32(np.nan), "gain"))
    with pytest.raises(InputError, match=r"tile pair_000@0,0: NaN or Inf .* of 'encoder_norm'"):
        collect(model, INTERFACE, tiles, {"encoder_norm": Histogram()})


def test_an_input_of_the_graph_can_be_observed(tiles):
    text = """g (float[batch,3,32,32] before, float[batch,3,32,32] after) => (float[batch,3,32,32] logits) {
        logits = Sub (after, before)
    }"""
    histograms = Histogram()
    collect(parsed(text, {}), Interface(SIDE, 4, input="float32", output="logits"), tiles, {"before": histograms})
    assert 2 < histograms.high < 2.7


def test_absolute_maxima_equal_those_of_the_tensors(tiles):
    few = tiles.subset([0, 7])
    names = ["encoder_scaled", "encoder_sum", "encoder_flat", "encoder_tokens", "guide_difference"]
    histograms = {name: Histogram() for name in names}
    collect(two_branch(), INTERFACE, few, dict(histograms))
    maxima = absolute_maxima(two_branch(), INTERFACE, few)
    assert "encoder_size" not in maxima
    for name in names:
        assert maxima[name] == pytest.approx(histograms[name].percentile(1).magnitude, rel=1e-4), name


def test_a_single_nan_in_a_tensor_is_detected(tiles):
    """onnxruntime's ReduceMax ignores it."""
    text = """g (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,32,32,3] logits) {
        first = Cast <to = 1> (before)  logits = Mul (first, gain) }"""
    gain = np.ones((32, 32, 3), np.float32)
    gain[7, 9, 1] = np.nan
    with pytest.raises(InputError, match=r"tile pair_003@0,0: NaN among the activations of 'logits'"):
        absolute_maxima(parsed(text, {"gain": gain}), INTERFACE, tiles.subset([3, 4]))
