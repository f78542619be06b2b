"""The calibrating stage: observe once, decide the calibrator on validation tiles, quantize for each recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from misgnet_calibration.calibrators import CANDIDATES, Calibrator
from misgnet_calibration.collect import collect, magnitudes
from misgnet_calibration.graph import Graph
from misgnet_calibration.observers import Histogram, Range
from misgnet_calibration.placement import activations, place
from misgnet_calibration.quantize import QuantizedGraph, quantize
from misgnet_calibration.recipes import Recipe
from misgnet_export.agreement import Agreement, Answers, answers_of, compare
from misgnet_runtime.callables import Progress
from misgnet_runtime.manifest import Interface
from misgnet_runtime.tiles import TileSet

_PEAK_TILES = 8


@dataclass(frozen=True)
class Observed:
    """Histograms of the activations to quantize, and the largest magnitude of every tensor."""

    histograms: Mapping[str, Histogram]
    peaks: Mapping[str, float]

    def ranges(self, calibrator: Calibrator) -> dict[str, Range]:
        """The range that ``calibrator`` keeps of each tensor."""
        return {name: calibrator.choose(histogram) for name, histogram in self.histograms.items()}


@dataclass(frozen=True)
class Decision:
    """Validation tiles that decide, and what the float graph answers on them."""

    tiles: TileSet
    expected: Answers


def observe(
    model: onnx.ModelProto, interface: Interface, tiles: TileSet, recipes: list[Recipe], progress: Progress
) -> Observed:
    """One pass over the calibration tiles for all recipes together; a second over a few for the peaks."""
    graph = Graph(model)
    names = dict.fromkeys(name for recipe in recipes for name in activations(place(graph, recipe)))
    histograms = {name: Histogram() for name in names}
    collect(model, interface, tiles, histograms, progress)
    few = tiles.subset(range(0, len(tiles), max(1, len(tiles) // _PEAK_TILES)))
    peaks = magnitudes(model, interface, few) if any(r.float16 for r in recipes) else {}
    return Observed(histograms, peaks)


def choose_calibrator(
    model: onnx.ModelProto, interface: Interface, observed: Observed, recipe: Recipe, decision: Decision,
    threshold: float, progress: Progress,
) -> tuple[Calibrator, dict[str, Agreement]]:  # fmt: skip
    """The candidate whose graph agrees with the float graph in most pixels of ``decision``, and all by name."""
    tried: dict[str, Agreement] = {}
    for index, calibrator in enumerate(CANDIDATES):
        candidate = quantize_for(model, recipe, observed, calibrator)
        found = answers_of(candidate.model, interface, decision.tiles)
        tried[calibrator.name] = compare(decision.expected, found, threshold)
        progress(index + 1, len(CANDIDATES))
    chosen = best(tried)
    return next(c for c in CANDIDATES if c.name == chosen), tried


def best(tried: Mapping[str, Agreement]) -> str:
    """Most agreeing pixels, then the smaller mean difference; a pure decision."""
    return max(tried, key=lambda name: (tried[name].pixels, -tried[name].mean))


def quantize_for(model: onnx.ModelProto, recipe: Recipe, observed: Observed, calibrator: Calibrator) -> QuantizedGraph:
    """The INT8 graph for ``recipe`` with ``calibrator``'s ranges."""
    return quantize(model, recipe, observed.ranges(calibrator), observed.peaks)
