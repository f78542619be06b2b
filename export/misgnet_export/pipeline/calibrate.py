"""Calibrates: collects activation statistics of the float graph once for all recipes, or reads them from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx

from misgnet_calibration.onnx_graph import Graph
from misgnet_calibration.quantizer.placement import activations, date_twins, quantizer_sites
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.statistics.cache import ActivationStatistics, StatisticsKey, load_statistics, save_statistics
from misgnet_calibration.statistics.collect import absolute_maxima, collect
from misgnet_calibration.statistics.observers import Histogram
from misgnet_export.pipeline.agreement import Predictions
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.result import FloatGraph, Sets
from misgnet_export.pipeline.validation_loss import Decision
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.dataset import TileSet

_MAXIMA_TILES = 8


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The float graph and its activation statistics, from which the INT8 stages start."""

    model: onnx.ModelProto
    predictions: Predictions  # of the float graph on the check tiles
    interface: Interface
    observed: ActivationStatistics
    calib: TileSet
    decision: Decision | None  # validation tiles that decide between alternatives; None if there is no validation set
    # Patterns for parts of the network that must not be float16, with the reason.
    float32_scopes: Mapping[str, str] = field(default_factory=dict)


def calibrate(context: BuildContext, graph: FloatGraph, sets: Sets, recipes: list[Recipe]) -> Calibrated:
    """Collects the activation statistics that ``recipes`` need, or reads them from the file of --observations.

    ``graph`` is the form of the float graph that ``recipes`` quantize. GPUs have their own file beside that of CPUs.
    """
    model, interface, file = graph.model, context.interface, context.request.observations
    for_gpu = all(recipe.float16 for recipe in recipes)
    if file is not None and for_gpu:
        file = file.with_name(f"{file.stem}_gpu{file.suffix}")  # another graph, with tensors of its own
    with context.log.stage("calibrate for GPUs" if for_gpu else "calibrate") as stage:
        observe_now = partial(observe, model, interface, sets.calib, recipes, stage.progress)
        if file is None:
            observed, reused = observe_now(), ""
        else:
            key = StatisticsKey(sets.calib.digest(), context.weights_sha256, _digest(model))
            observed, word = observe_or_reuse(file, key, model, recipes, observe_now)
            reused = f"; {file}: {word}"
        decision = None
        if sets.decision is not None:
            decision = Decision.of(model, interface, sets.decision, context.policy.threshold, stage.progress)
        found = plural(len(observed.histograms), "activation")
        stage.finding = f"{found} on {plural(len(sets.calib), 'tile')} of both dates{reused}"
    return Calibrated(
        model=model, predictions=graph.predictions, interface=interface, observed=observed, calib=sets.calib,
        decision=decision, float32_scopes=context.known.float32_scopes,
    )  # fmt: skip


def observe(
    model: onnx.ModelProto,
    interface: Interface,
    tiles: TileSet,
    recipes: list[Recipe],
    progress: Progress | None = None,
) -> ActivationStatistics:
    """Collects histograms in one pass over the calibration tiles, and absolute maxima in a second over a few of them.

    Both passes serve all recipes. Recipes without INT8 need no histograms, so the first pass is skipped.
    """
    histograms = {name: Histogram() for name in sorted(needed(model, recipes))}
    graph = Graph(model)
    for recipe in recipes:  # one histogram for both dates
        for name, twin in date_twins(graph, quantizer_sites(graph, recipe)).items():
            histograms[name] = histograms[twin]
    if histograms:
        collect(model, interface, tiles, histograms, progress)
    few = tiles.subset(range(0, len(tiles), max(1, len(tiles) // _MAXIMA_TILES)))
    maxima = absolute_maxima(model, interface, few) if any(r.float16 for r in recipes) else {}
    return ActivationStatistics(histograms, maxima)


def observe_or_reuse(
    path: Path, key: StatisticsKey, model: onnx.ModelProto, recipes: list[Recipe],
    observe_now: Callable[[], ActivationStatistics],
) -> tuple[ActivationStatistics, str]:  # fmt: skip
    """Reads statistics of the same tiles, weights and graph from ``path``; else collects them and saves them there.

    Returns:
        The statistics, and a word for the log: whether they were reused, or why not.

    Raises:
        InputError: The file cannot be read.
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
    has_maxima = bool(saved.absolute_maxima) or not any(recipe.float16 for recipe in recipes)
    return has_maxima and needed(model, recipes) <= saved.histograms.keys()


def needed(model: onnx.ModelProto, recipes: list[Recipe]) -> set[str]:
    """Returns the activations whose ranges the quantizer sites of the recipes need."""
    graph = Graph(model)
    return {name for recipe in recipes for name in activations(quantizer_sites(graph, recipe))}
