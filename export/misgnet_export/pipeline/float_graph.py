"""The stages of the float graph: export, simplify, rewrite. Each must give what the stage before gave."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx

from misgnet.evaluation import predict_probability
from misgnet.network import MISGNet
from misgnet_export.graph.algebra import rewrite
from misgnet_export.graph.export import export_graph
from misgnet_export.graph.simplify import simplify_graph
from misgnet_export.pipeline.agreement import Answers, answers, answers_of, compare, require_same
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.result import FloatGraph
from misgnet_runtime.callables import Predict

Transform = Callable[[onnx.ModelProto], onnx.ModelProto]
# What is done to the exported graph: the stage's name, by which function, and what it and the graph before are called.
_TRANSFORMS: tuple[tuple[str, Transform, tuple[str, str]], ...] = (
    ("simplify", simplify_graph, ("the simplified graph", "the exported one")),
    ("rewrite", rewrite, ("the rewritten graph", "the simplified one")),
)


def make_float_graph(context: BuildContext, network: MISGNet) -> FloatGraph:
    """Export ``network`` and optimise the graph. Raises GateFailed where a stage changes the output."""
    expected = answers(torch_predictor(network), context.check_tiles)
    make = partial(export_graph, network, context.interface)
    graph = _checked(context, "export to ONNX", make, expected, ("the exported graph", "the PyTorch network"))
    for name, transform, described in _TRANSFORMS:
        graph = _checked(context, name, partial(transform, graph.model), graph.answers, described)
    return graph


def torch_predictor(network: MISGNet) -> Predict:
    """The network as a function of uint8 tiles."""
    return lambda before, after: predict_probability(network, before, after)


def _checked(
    context: BuildContext, name: str, make: Callable[[], onnx.ModelProto], expected: Answers,
    described: tuple[str, str],
) -> FloatGraph:  # fmt: skip
    """Run the stage ``name``; ``described``: its graph and the one before, for the error."""
    with context.log.stage(name) as stage:
        model = make()
        answered = answers_of(model, context.interface, context.check_tiles, stage.progress)
        found = compare(expected, answered, context.policy.threshold)
        require_same(found, context.interface, *described)
        stage.finding = f"{len(model.graph.node)} nodes, {found}"
    return FloatGraph(model, answered)
