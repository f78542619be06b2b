"""The calibrating stage: observe once, decide the calibrator on validation tiles, quantize for each recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.per_tensor_range import PerTensor, choose_per_tensor
from misgnet_calibration.quantizer.placement import activations, quantizer_sites
from misgnet_calibration.quantizer.quantize import QuantizationInputs, QuantizedGraph
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.statistics.cache import ActivationStatistics, StatisticsKey, load_statistics, save_statistics
from misgnet_calibration.statistics.calibrators import (
    AUTO,
    CANDIDATES,
    DEFAULT,
    PER_TENSOR,
    Calibrating,
    Calibrator,
    named,
)
from misgnet_calibration.statistics.collect import absolute_maxima, collect
from misgnet_calibration.statistics.observers import Histogram, Range
from misgnet_export.pipeline.agreement import Agreement, Answers
from misgnet_export.pipeline.validation_loss import Decision, Loss
from misgnet_runtime.bundle.manifest import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.raster.dataset import Tile, TileSet

_PEAK_TILES = 8


@dataclass(frozen=True)
class Calibrated:
    """What the INT8 stages start from: the simplified float graph and what was seen of its activations.

    ``few`` and ``answers``: tiles that every stage is checked on, and what the graph answers there;
    ``decision``: the tiles that decide, None without a validation set.
    """

    model: onnx.ModelProto
    interface: Interface
    observed: ActivationStatistics
    calib: TileSet
    few: Sequence[Tile]
    answers: Answers
    decision: Decision | None


@dataclass(frozen=True)
class Candidate:
    """An INT8 graph with the ranges of one calibrator, and what it loses; None where no tiles decide."""

    calibrator: Calibrating
    inputs: QuantizationInputs
    quantized: QuantizedGraph
    loss: Loss | None


def observe(
    model: onnx.ModelProto,
    interface: Interface,
    tiles: TileSet,
    recipes: list[Recipe],
    progress: Progress | None = None,
) -> ActivationStatistics:
    """One pass over the calibration tiles for all recipes together; a second over a few for the peaks.

    Recipes without INT8 need no ranges, and no pass over all tiles.
    """
    histograms = {name: Histogram() for name in sorted(needed(model, recipes))}
    if histograms:
        collect(model, interface, tiles, histograms, progress)
    few = tiles.subset(range(0, len(tiles), max(1, len(tiles) // _PEAK_TILES)))
    peaks = absolute_maxima(model, interface, few) if any(r.float16 for r in recipes) else {}
    return ActivationStatistics(histograms, peaks)


def observe_or_reuse(
    path: Path, key: StatisticsKey, model: onnx.ModelProto, interface: Interface, tiles: TileSet,
    recipes: list[Recipe], progress: Progress,
) -> tuple[ActivationStatistics, str]:  # fmt: skip
    """What ``path`` holds of the same tiles, weights and graph, else observed now and saved there; and which it was.

    Raises InputError where the file cannot be read.
    """
    saved, word = load_statistics(path, key)
    if saved is not None:
        if _enough(saved, model, recipes):
            return saved, word
        word = "saved for other targets"
    found = observe(model, interface, tiles, recipes, progress)
    save_statistics(path, found, key)
    return found, word


def _enough(saved: ActivationStatistics, model: onnx.ModelProto, recipes: list[Recipe]) -> bool:
    peaks = bool(saved.absolute_maxima) or not any(recipe.float16 for recipe in recipes)
    return peaks and needed(model, recipes) <= saved.histograms.keys()


def needed(model: onnx.ModelProto, recipes: list[Recipe]) -> set[str]:
    """The activations whose ranges the recipes' places need."""
    graph = Graph(model)
    return {name for recipe in recipes for name in activations(quantizer_sites(graph, recipe))}


def quantized_as(
    asked: str, start: Calibrated, recipe: Recipe, progress: Progress
) -> tuple[Candidate, dict[str, Candidate]]:
    """The graph by the observer ``asked`` for, and all that were tried where the deciding tiles choose one."""
    if asked == AUTO and start.decision is not None:
        tried = try_calibrators(start, recipe, progress)
        chosen = tried[best({name: c.loss.agreement for name, c in tried.items() if c.loss})]
        return quantized_with(chosen.calibrator, start, recipe) if recipe.float16 else chosen, tried
    if asked == PER_TENSOR:
        return quantized_with(per_tensor(start, recipe, _candidate_ranges(start, recipe), progress), start, recipe), {}
    return quantized_with(named(asked) or DEFAULT, start, recipe), {}


def try_calibrators(start: Calibrated, recipe: Recipe, progress: Progress) -> dict[str, Candidate]:
    """By name each calibrator of CANDIDATES, and their choice for each tensor: the graph and what it loses.

    What a recipe computes in float16 is float32 in these graphs: ranges are compared, and half precision is slow here.
    """
    recipe = replace(recipe, float16=False)
    tried: dict[str, Candidate] = {}
    for done, calibrator in enumerate(CANDIDATES, 1):
        tried[calibrator.name] = quantized_with(calibrator, start, recipe)
        progress(done, len(CANDIDATES) + 1)
    ranges = {calibrator: tried[calibrator.name].inputs.ranges for calibrator in CANDIDATES}
    chosen = per_tensor(start, recipe, ranges)
    return {**tried, chosen.name: quantized_with(chosen, start, recipe)}


def quantized_with(calibrator: Calibrating, start: Calibrated, recipe: Recipe) -> Candidate:
    """The INT8 graph for ``recipe`` with the ranges of ``calibrator``."""
    inputs = QuantizationInputs(
        model=start.model,
        ranges=start.observed.ranges(calibrator, symmetric=recipe.symmetric_activations),
        absolute_maxima=start.observed.absolute_maxima,
    )
    quantized = inputs.quantize(recipe)
    return Candidate(calibrator, inputs, quantized, start.decision.loss(quantized.model) if start.decision else None)


def per_tensor(
    start: Calibrated, recipe: Recipe, ranges: Mapping[Calibrator, Mapping[str, Range]],
    progress: Progress | None = None,
) -> PerTensor:  # fmt: skip
    """For each tensor the calibrator, of those with ``ranges``, that errs least in what is computed from it."""
    sites = quantizer_sites(Graph(start.model), recipe)
    return choose_per_tensor(
        start.model, start.interface, start.calib, sites, recipe, candidates=ranges, progress=progress
    )


def _candidate_ranges(start: Calibrated, recipe: Recipe) -> dict[Calibrator, Mapping[str, Range]]:
    return {
        calibrator: start.observed.ranges(calibrator, symmetric=recipe.symmetric_activations)
        for calibrator in CANDIDATES
    }


def best(tried: Mapping[str, Agreement]) -> str:
    """Most agreeing pixels, then the smaller mean difference; a pure decision."""
    return max(tried, key=lambda name: (tried[name].pixels, -tried[name].mean))
