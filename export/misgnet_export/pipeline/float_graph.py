"""Makes the float graph: export, simplify, rewrite. Each stage must reproduce the output of the stage before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import onnx

from misgnet_export.graph.algebra import rewrite
from misgnet_export.graph.simplify import simplify_graph
from misgnet_export.pipeline.agreement import Predictions, compare, predict_tiles, predictions_of, require_same
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.result import FloatGraph
from misgnet_export.pipeline.targets import recipes_of
from misgnet_export.sources.float_model import FloatModel
from misgnet_runtime.formatting import plural


def make_float_graph(context: BuildContext, start: FloatModel) -> FloatGraph:
    """Exports the float model and optimises the graph, also for GPUs if a target needs it.

    Raises GateFailed if a stage changes the output.
    """
    expected = predict_tiles(start.predict, context.check_tiles, batch=len(context.check_tiles))
    exported = _checked(context, "export to ONNX", start.export, expected, ("the exported graph", start.reference))
    simplify = partial(simplify_graph, exported.model, norms_fold=start.network is not None)
    described = ("the simplified graph", "the exported one")
    simplified = _checked(context, "simplify", simplify, exported.predictions, described)
    graph = _rewritten(context, "rewrite", simplified)
    if any(recipe.float16 for recipe in recipes_of(context.request.targets)):
        graph = replace(graph, for_gpu=_rewritten(context, "rewrite for GPUs", simplified, for_gpu=True))
    return graph


def _rewritten(context: BuildContext, name: str, graph: FloatGraph, *, for_gpu: bool = False) -> FloatGraph:
    transform = partial(rewrite, graph.model, for_gpu=for_gpu)
    return _checked(context, name, transform, graph.predictions, ("the rewritten graph", "the simplified one"))


def _checked(
    context: BuildContext, name: str, make: Callable[[], onnx.ModelProto], expected: Predictions,
    described: tuple[str, str],
) -> FloatGraph:  # fmt: skip
    """Runs the stage ``name`` and checks its graph; ``described`` names this graph and the one before for errors."""
    with context.log.stage(name) as stage:
        model = make()
        predicted = predictions_of(model, context.interface, context.check_tiles, stage.progress)
        found = compare(expected, predicted, context.policy.threshold)
        require_same(found, context.interface, *described)
        stage.finding = f"{plural(len(model.graph.node), 'node')}, {found}"
    return FloatGraph(model, predicted)
