"""Which places of the float graph become INT8.

Quantized: the inputs of convolutions and of matrix products with constant weights. Float stay: residual
adds, LayerNorm, softmax, GELU, products of two activations, depthwise convolutions, and what is too small
to gain: fewer than 16 channels, or fewer than 16 positions an image pair (the graph nodes of the guidance).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from misgnet_calibration.graph import Graph, attribute
from misgnet_calibration.recipes import Recipe

MIN_CHANNELS = 16
MIN_ROWS = 16


@dataclass(frozen=True)
class Place:
    """One quantized operator: the activation and weight to quantize, and its output where that is, too."""

    node: str
    activation: str
    weight: str
    weight_axis: int
    bias: str | None
    output: str | None


def place(graph: Graph, recipe: Recipe) -> list[Place]:
    """The places that ``recipe`` quantizes in ``graph``, in the order of the nodes."""
    places = [_place(graph, node, recipe) for node in graph.nodes if worth_quantizing(graph, node)]
    return [p for p in places if p.output not in graph.outputs()]  # those numbers stay as fine as they are


def worth_quantizing(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether the rules at the top of this module make ``node`` INT8."""
    weight = graph.weight_of(node)
    if weight is None or node.op_type == "Gemm" or not graph.is_float(node.input[0]):
        return False
    shape = graph.shape(weight)
    large = len(shape) in (2, 4) and min(shape[:2]) >= MIN_CHANNELS
    return large and attribute(node, "group", 1) == 1 and graph.rows(node) >= MIN_ROWS


def activations(places: list[Place]) -> list[str]:
    """Tensors whose range is needed, each once."""
    names = [p.activation for p in places] + [p.output for p in places if p.output]
    return list(dict.fromkeys(names))


def int8_share(graph: Graph, places: list[Place]) -> float:
    """Share of the multiply-adds with constant weights that run in INT8."""
    quantized = {p.node for p in places}
    costs = {node.name: graph.multiply_adds(node) for node in graph.nodes}
    return sum(costs[name] for name in quantized) / max(1, sum(costs.values()))


def _place(graph: Graph, node: onnx.NodeProto, recipe: Recipe) -> Place:
    is_conv = node.op_type == "Conv"
    bias = _constant_bias(graph, node) if is_conv and recipe.quantize_bias else None
    output = _quantizable_output(graph, node) if is_conv and recipe.quantize_conv_outputs else None
    return Place(node.name, node.input[0], node.input[1], 0 if is_conv else 1, bias, output)


def _constant_bias(graph: Graph, conv: onnx.NodeProto) -> str | None:
    return str(conv.input[2]) if len(conv.input) > 2 and conv.input[2] in graph.constants else None


def _quantizable_output(graph: Graph, conv: onnx.NodeProto) -> str:
    """The convolution's output, or that of the ReLU which is its only consumer: both become one operator."""
    consumers = graph.consumers[conv.output[0]]
    if len(consumers) == 1 and consumers[0].op_type == "Relu" and conv.output[0] not in graph.outputs():
        return str(consumers[0].output[0])
    return str(conv.output[0])
