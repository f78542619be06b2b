"""The calibrating stage: observe once, decide the calibrator on validation tiles, quantize for each recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from misgnet_calibration.calibrators import CANDIDATES, Calibrator
from misgnet_calibration.collect import collect, magnitudes
from misgnet_calibration.graph import Graph
from misgnet_calibration.observations import ObservationKey, Observed, load_observations, save_observations
from misgnet_calibration.observers import Histogram
from misgnet_calibration.placement import activations, place
from misgnet_calibration.quantize import QuantizedGraph
from misgnet_calibration.recipes import Recipe
from misgnet_calibration.repair import Inputs
from misgnet_export.agreement import Agreement
from misgnet_export.decision import Decision, Loss
from misgnet_runtime.callables import Progress
from misgnet_runtime.manifest import Interface
from misgnet_runtime.tiles import TileSet

_PEAK_TILES = 8


@dataclass(frozen=True)
class Candidate:
    """An INT8 graph with the ranges of one calibrator, and what it loses; None where no tiles decide."""

    calibrator: Calibrator
    inputs: Inputs
    quantized: QuantizedGraph
    loss: Loss | None


def observe(
    model: onnx.ModelProto,
    interface: Interface,
    tiles: TileSet,
    recipes: list[Recipe],
    progress: Progress | None = None,
) -> Observed:
    """One pass over the calibration tiles for all recipes together; a second over a few for the peaks.

    Recipes without INT8 need no ranges, and no pass over all tiles.
    """
    histograms = {name: Histogram() for name in sorted(needed(model, recipes))}
    if histograms:
        collect(model, interface, tiles, histograms, progress)
    few = tiles.subset(range(0, len(tiles), max(1, len(tiles) // _PEAK_TILES)))
    peaks = magnitudes(model, interface, few) if any(r.float16 for r in recipes) else {}
    return Observed(histograms, peaks)


def observe_or_reuse(
    path: Path, key: ObservationKey, model: onnx.ModelProto, interface: Interface, tiles: TileSet,
    recipes: list[Recipe], progress: Progress,
) -> tuple[Observed, str]:  # fmt: skip
    """What ``path`` holds of the same tiles, weights and graph, else observed now and saved there; and which it was.

    Raises InputError where the file cannot be read.
    """
    saved, word = load_observations(path, key)
    if saved is not None:
        if _enough(saved, model, recipes):
            return saved, word
        word = "saved for other targets"
    found = observe(model, interface, tiles, recipes, progress)
    save_observations(path, found, key)
    return found, word


def _enough(saved: Observed, model: onnx.ModelProto, recipes: list[Recipe]) -> bool:
    peaks = bool(saved.peaks) or not any(recipe.float16 for recipe in recipes)
    return peaks and needed(model, recipes) <= saved.histograms.keys()


def needed(model: onnx.ModelProto, recipes: list[Recipe]) -> set[str]:
    """The activations whose ranges the recipes' places need."""
    graph = Graph(model)
    return {name for recipe in recipes for name in activations(place(graph, recipe))}


def try_calibrators(
    model: onnx.ModelProto, observed: Observed, recipe: Recipe, decision: Decision, progress: Progress
) -> dict[str, Candidate]:
    """By calibrator of CANDIDATES, its graph and what that loses on the tiles of ``decision``."""
    tried = {}
    for done, calibrator in enumerate(CANDIDATES, 1):
        tried[calibrator.name] = quantized_with(calibrator, model, observed, recipe, decision)
        progress(done, len(CANDIDATES))
    return tried


def quantized_with(
    calibrator: Calibrator, model: onnx.ModelProto, observed: Observed, recipe: Recipe, decision: Decision | None
) -> Candidate:
    """The INT8 graph for ``recipe`` with the ranges of ``calibrator``."""
    inputs = Inputs(model, observed.ranges(calibrator, recipe), observed.peaks)
    quantized = inputs.quantize(recipe)
    return Candidate(calibrator, inputs, quantized, decision.loss(quantized.model) if decision else None)


def best(tried: Mapping[str, Agreement]) -> str:
    """Most agreeing pixels, then the smaller mean difference; a pure decision."""
    return max(tried, key=lambda name: (tried[name].pixels, -tried[name].mean))
