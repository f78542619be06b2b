"""Which places of the float graph become INT8, by the recipe's table of rules."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from misgnet_calibration.graph import Graph, attribute
from misgnet_calibration.placement_rules import Rule
from misgnet_calibration.recipes import Recipe


@dataclass(frozen=True)
class Place:
    """One quantized operator: the activation and weight to quantize, and its output where that is, too."""

    node: str
    activation: str
    weight: str
    weight_axis: int
    bias: str | None
    output: str | None


@dataclass(frozen=True)
class Placement:
    """What a rule decided for one operator of the float graph."""

    node: str
    operator: str
    rule: Rule
    multiply_adds: int  # of one image pair, with a constant weight


def placements(graph: Graph, recipe: Recipe) -> list[Placement]:
    """Every operator with the rule that decides on it, in the order of the nodes."""
    found = [(node, _decide(graph, node, recipe)) for node in graph.nodes]
    return [Placement(node.name, node.op_type, rule, graph.multiply_adds(node)) for node, rule in found]


def place(graph: Graph, recipe: Recipe) -> list[Place]:
    """The places that ``recipe`` quantizes in ``graph``, in the order of the nodes."""
    chosen = [p.node for p in placements(graph, recipe) if p.rule.decision == "int8"]
    return [_place(graph, graph.by_name[name], recipe) for name in chosen]


def activations(places: list[Place]) -> list[str]:
    """Tensors whose range is needed, each once."""
    names = [p.activation for p in places] + [p.output for p in places if p.output]
    return list(dict.fromkeys(names))


def int8_share(graph: Graph, places: list[Place]) -> float:
    """Share of the multiply-adds with constant weights that run in INT8."""
    quantized = {p.node for p in places}
    costs = {node.name: graph.multiply_adds(node) for node in graph.nodes}
    return sum(costs[name] for name in quantized) / max(1, sum(costs.values()))


def _decide(graph: Graph, node: onnx.NodeProto, recipe: Recipe) -> Rule:
    """The first rule that fits; a table ends with one that fits everything."""
    return next(rule for rule in recipe.rules if _fits(graph, node, rule, recipe))


def _fits(graph: Graph, node: onnx.NodeProto, rule: Rule, recipe: Recipe) -> bool:
    if rule.operators and node.op_type not in rule.operators:
        return False
    if rule.weighted is not None and rule.weighted != _is_weighted(graph, node):
        return False
    if rule.grouped is not None and rule.grouped != (attribute(node, "group", 1) != 1):
        return False
    if rule.feeds_output is not None and rule.feeds_output != _feeds_output(graph, node, recipe):
        return False
    if rule.fewer_channels is not None and not _channels(graph, node) < rule.fewer_channels:
        return False
    return rule.fewer_rows is None or graph.rows(node) < rule.fewer_rows


def _is_weighted(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a constant matrix or kernel meets a float activation."""
    weight = graph.weight_of(node)
    return weight is not None and graph.is_float(node.input[0]) and len(graph.shape(weight)) in (2, 4)


def _channels(graph: Graph, node: onnx.NodeProto) -> int:
    weight = graph.weight_of(node)
    return min(graph.shape(weight)[:2]) if weight else 0


def _feeds_output(graph: Graph, node: onnx.NodeProto, recipe: Recipe) -> bool:
    written = _quantizable_output(graph, node) if recipe.quantize_conv_outputs else node.output[0]
    return written in graph.outputs()


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
