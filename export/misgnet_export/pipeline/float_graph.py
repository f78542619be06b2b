"""Makes the float graph: export, simplify, rewrite. Each stage must reproduce the output of the stage before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx

from misgnet.evaluation import predict_probability
from misgnet.network import MISGNet
from misgnet_export.graph.algebra import rewrite
from misgnet_export.graph.export import export_graph
from misgnet_export.graph.simplify import simplify_graph
from misgnet_export.pipeline.agreement import Predictions, compare, predict_tiles, predictions_of, require_same
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.result import FloatGraph
from misgnet_export.pipeline.torch_threads import tile_per_core
from misgnet_runtime.callables import Predict
from misgnet_runtime.formatting import plural

Transform = Callable[[onnx.ModelProto], onnx.ModelProto]
# Transforms of the exported graph: the stage's name, its function, and names of its result and its input for errors.
_TRANSFORMS: tuple[tuple[str, Transform, tuple[str, str]], ...] = (
    ("simplify", simplify_graph, ("the simplified graph", "the exported one")),
    ("rewrite", rewrite, ("the rewritten graph", "the simplified one")),
)


def make_float_graph(context: BuildContext, network: MISGNet) -> FloatGraph:
    """Exports ``network`` and optimises the graph. Raises GateFailed if a stage changes the output."""
    expected = predict_tiles(torch_predictor(network), context.check_tiles, batch=len(context.check_tiles))
    make = partial(export_graph, network, context.interface)
    graph = _checked(context, "export to ONNX", make, expected, ("the exported graph", "the PyTorch network"))
    for name, transform, described in _TRANSFORMS:
        graph = _checked(context, name, partial(transform, graph.model), graph.predictions, described)
    return graph


def torch_predictor(network: MISGNet) -> Predict:
    """Returns the network as a function of uint8 tiles; computes a tile per core."""
    return tile_per_core(partial(predict_probability, network))


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
