"""Tests that a small EfficientNet for two dates keeps its masks of generated tiles in INT8, or the record says why not.

Its weights are random: the F1 is that against the masks of the float graph.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="export needs the [export] extra")

from misgnet.synthetic import write_split
from misgnet_calibration.onnx_graph import Graph
from misgnet_calibration.quantizer.known_modules import UNKNOWN
from misgnet_calibration.quantizer.placement import date_twins, quantizer_sites
from misgnet_calibration.quantizer.recipes import CPU_VNNI, OPENVINO, Recipe
from misgnet_export.evidence import record_of
from misgnet_export.graph.algebra import rewrite
from misgnet_export.graph.simplify import simplify_graph
from misgnet_export.pipeline.agreement import predictions_of
from misgnet_export.pipeline.calibrate import Calibrated, observe
from misgnet_export.pipeline.quantize import quantize_recipe
from misgnet_export.pipeline.validation_loss import Decision
from misgnet_export.report.control import summary
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.bundle import Interface
from misgnet_runtime.raster.dataset import TileSet
from support.builds import context_of, request_of
from support.efficient_pair import EfficientPair, exported

TILE = 64
INTERFACE = Interface(TILE, 8)
RECIPES = [CPU_VNNI, OPENVINO]
# A stem and three stages, as in the whole network: an expansion of 4, a kernel of 5, and a residual sum.
BLOCKS = ((16, 1, 3, 1), (16, 4, 3, 2), (16, 4, 3, 1), (24, 4, 5, 2), (24, 4, 5, 1), (32, 4, 3, 2), (32, 4, 3, 1))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TileSet]:
    folder = tmp_path_factory.mktemp("tiles")
    for seed, (name, count) in enumerate({"train": 8, "val": 4, "test": 4}.items()):
        write_split(folder / name, count, seed=seed, size=TILE)
    return {name: TileSet.open(folder / name, TILE) for name in ("train", "val", "test")}


@pytest.fixture(scope="module")
def graph(sets: dict[str, TileSet]) -> onnx.ModelProto:
    return rewrite(simplify_graph(exported(network_for(sets["train"]), TILE), norms_fold=False))


def network_for(tiles: TileSet) -> EfficientPair:
    """Returns a random network whose norms fit ``tiles``, and whose masks of them are half full."""
    torch.manual_seed(0)
    network = EfficientPair(width=16, blocks=BLOCKS)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics are means over all calls
    read = list(tiles.tiles())
    dates = (torch.from_numpy(np.stack([getattr(t, name) for t in read])) for name in ("before", "after"))
    before, after = (date.float().permute(0, 3, 1, 2) / 64 - 2 for date in dates)
    with torch.no_grad():
        network(before, after)
        logits = network.eval()(before, after)
        network.head.weight.mul_(3 / logits.std())
        network.head.bias.copy_((network.head.bias - logits.median()) * 3 / logits.std())
    return network


def masks(model: onnx.ModelProto, tiles: TileSet) -> list[np.ndarray]:
    return [found > 0.5 for found in predictions_of(model, INTERFACE, list(tiles.tiles()))]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_masks_are_kept_or_the_record_states_what_is_float(
    graph: onnx.ModelProto, sets: dict[str, TileSet], recipe: Recipe
) -> None:
    observed = observe(graph, INTERFACE, sets["train"], [recipe])
    check = list(sets["train"].spread(2).tiles())
    start = Calibrated(
        model=graph, predictions=predictions_of(graph, INTERFACE, check), interface=INTERFACE, observed=observed,
        calib=sets["train"], decision=Decision.of(graph, INTERFACE, sets["val"], 0.5, lambda *_: None),
    )  # fmt: skip
    request = request_of(observer="mse", repair="auto", control_minutes=0.1)
    context = replace(context_of(request, check_tiles=check), known=UNKNOWN, interface=INTERFACE)
    found = quantize_recipe(context, start, recipe)
    expected = masks(graph, sets["test"])
    assert 0.1 < np.mean(expected) < 0.9
    parts = [Confusion.of(m, e) for m, e in zip(masks(found.quantized.model, sets["test"]), expected, strict=True)]
    f1 = Confusion.total(parts).f1
    assert f1 is not None and f1 > 0.98
    if found.control is None:
        assert found.quantized.int8_share > 0.7
    else:
        before, after = found.control.steps[0].int8_share, found.control.result.int8_share
        assert before > 0.7 and after == pytest.approx(found.quantized.int8_share)
        assert not found.control.result.float_groups or "of the MACs out of INT8" in summary(record_of(found.control))


def test_both_dates_are_observed_together(graph: onnx.ModelProto, sets: dict[str, TileSet]) -> None:
    """The encoder runs once for each date: what is equal in both stays equal only with equal ranges."""
    twins = date_twins(Graph(graph), quantizer_sites(Graph(graph), OPENVINO))
    assert len(twins) > 10
    histograms = observe(graph, INTERFACE, sets["val"], [OPENVINO]).histograms
    assert all(histograms[name] is histograms[twin] for name, twin in twins.items())
