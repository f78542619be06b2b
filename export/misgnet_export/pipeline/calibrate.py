"""The calibrating stage: the float graph's activations are observed once for all recipes, or read from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from misgnet_calibration.onnx_graph import Graph
from misgnet_calibration.quantizer.placement import activations, quantizer_sites
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.statistics.cache import ActivationStatistics, StatisticsKey, load_statistics, save_statistics
from misgnet_calibration.statistics.collect import absolute_maxima, collect
from misgnet_calibration.statistics.observers import Histogram
from misgnet_export.pipeline.agreement import Answers
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.result import FloatGraph, Sets
from misgnet_export.pipeline.validation_loss import Decision
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.raster.dataset import TileSet

_PEAK_TILES = 8


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What the INT8 stages start from: the float graph and what was seen of its activations."""

    model: onnx.ModelProto
    answers: Answers  # of the float graph on the tiles that every stage is checked on
    interface: Interface
    observed: ActivationStatistics
    calib: TileSet
    decision: Decision | None  # the tiles that decide; None without a validation set


def calibrate(context: BuildContext, graph: FloatGraph, sets: Sets, recipes: list[Recipe]) -> Calibrated:
    """Observe the activations that ``recipes`` need, or read what a file keeps of them."""
    model, interface, file = graph.model, context.interface, context.request.observations
    with context.log.stage("calibrate") as stage:
        observe_now = partial(observe, model, interface, sets.calib, recipes, stage.progress)
        if file is None:
            observed, reused = observe_now(), ""
        else:
            key = StatisticsKey(sets.calib.digest(), sets.weights_sha256, _digest(model))
            observed, word = observe_or_reuse(file, key, model, recipes, observe_now)
            reused = f"; {file}: {word}"
        decision = None
        if sets.decision is not None:
            decision = Decision.of(model, interface, sets.decision, context.policy.threshold, stage.progress)
        stage.finding = f"{len(observed.histograms)} activations on {len(sets.calib)} tiles of both dates{reused}"
    return Calibrated(
        model=model, answers=graph.answers, interface=interface, observed=observed, calib=sets.calib,
        decision=decision,
    )  # fmt: skip


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
    path: Path, key: StatisticsKey, model: onnx.ModelProto, recipes: list[Recipe],
    observe_now: Callable[[], ActivationStatistics],
) -> tuple[ActivationStatistics, str]:  # fmt: skip
    """What ``path`` holds of the same tiles, weights and graph, else observed now and saved there; and which it was.

    Raises InputError where the file cannot be read.
    """
    saved, word = load_statistics(path, key)
    if saved is not None:
        if _enough(saved, model, recipes):
            return saved, word
        word = "saved for other targets"
    found = observe_now()
    save_statistics(path, found, key)
    return found, word


def _digest(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _enough(saved: ActivationStatistics, model: onnx.ModelProto, recipes: list[Recipe]) -> bool:
    peaks = bool(saved.absolute_maxima) or not any(recipe.float16 for recipe in recipes)
    return peaks and needed(model, recipes) <= saved.histograms.keys()


def needed(model: onnx.ModelProto, recipes: list[Recipe]) -> set[str]:
    """The activations whose ranges the recipes' places need."""
    graph = Graph(model)
    return {name for recipe in recipes for name in activations(quantizer_sites(graph, recipe))}
