"""Selects quantizer sites: the operators of the float graph that become INT8 by the rules of a recipe."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from misgnet_calibration.onnx_graph.graph import Graph, attribute, interpolates, output_axis, scope
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.rules import Rule

_MOVING = ("Reshape", "Transpose")  # between a convolution and the operator that computes with its output


@dataclass(frozen=True, kw_only=True)
class WeightedSite:
    """One quantized operator with a constant weight."""

    node: str
    activation: str
    weight: str
    weight_axis: int  # of the output channels
    bias: str | None
    output: str | None  # set if the output is quantized as well

    @property
    def tensors(self) -> tuple[str, ...]:
        """The activations that are quantized for this site and need a range."""
        return (self.activation, self.output) if self.output else (self.activation,)


@dataclass(frozen=True)
class OperandSite:
    """One quantized operator without a constant weight: the float activations that it reads, each once."""

    node: str
    tensors: tuple[str, ...]


QuantizerSite = WeightedSite | OperandSite


@dataclass(frozen=True)
class Placement:
    """A rule's decision for one operator of the float graph."""

    node: str
    operator: str
    rule: Rule
    macs: int  # of one image pair, with a constant weight


def placements(graph: Graph, recipe: Recipe) -> list[Placement]:
    """Returns every operator with the rule that applies to it, in the order of the nodes."""
    found = [(node, _decide(graph, node, recipe)) for node in graph.nodes]
    return [Placement(node.name, node.op_type, rule, graph.macs(node)) for node, rule in found]


def quantizer_sites(graph: Graph, recipe: Recipe) -> list[QuantizerSite]:
    """Returns the sites that ``recipe`` quantizes in ``graph``, in the order of the nodes."""
    chosen = [p.node for p in placements(graph, recipe) if p.rule.decision == "int8"]
    return [_site(graph, graph.by_name[name], recipe) for name in chosen]


def weighted(sites: Iterable[QuantizerSite]) -> list[WeightedSite]:
    """Returns those of ``sites`` that have a weight."""
    return [p for p in sites if isinstance(p, WeightedSite)]


def activations(sites: Iterable[QuantizerSite]) -> list[str]:
    """Returns the tensors whose range is needed, each once."""
    return list(dict.fromkeys(name for p in sites for name in p.tensors))


def date_twins(graph: Graph, sites: Iterable[QuantizerSite]) -> dict[str, str]:
    """Returns, by tensor, the tensor of the other date that must have the same range; empty for one encoding of both.

    A network that encodes each date by itself reads its weights once for each. With ranges of their own, what did not
    change would be rounded to different values in both dates, and their difference would not be 0. Tensors are twins if
    operators with the same weight read or write them, one of which depends on one input of the graph only, the other on
    another one; the n-th such operator of one date corresponds to the n-th of the other.
    """
    sources = _sources(graph)
    by_weight: dict[str, dict[str, list[WeightedSite]]] = defaultdict(lambda: defaultdict(list))
    for site in weighted(sites):
        if len(found := sources[site.activation]) == 1:
            by_weight[site.weight][next(iter(found))].append(site)
    twins: dict[str, str] = {}
    for dates in by_weight.values():
        first, *others = dates.values()
        for other in others:
            pairs = zip(first, other, strict=True) if len(first) == len(other) else ()
            twins |= {b: a for x, y in pairs for a, b in zip(x.tensors, y.tensors, strict=False)}
    return {other: twins.get(one, one) for other, one in twins.items()}


def _sources(graph: Graph) -> dict[str, frozenset[str]]:
    """Returns the inputs of the graph that each tensor depends on."""
    names = [value.name for value in graph.model.graph.input]
    found = {name: frozenset([name]) for name in names if name not in graph.constants}
    for node in graph.nodes:
        read = frozenset[str]().union(*(found.get(name, frozenset()) for name in node.input))
        found |= dict.fromkeys(node.output, read)
    return defaultdict(frozenset, found)


def int8_share(graph: Graph, sites: Iterable[QuantizerSite]) -> float:
    """Returns the share of the MACs with constant weights that run in INT8."""
    quantized = {p.node for p in sites}
    costs = {node.name: graph.macs(node) for node in graph.nodes}
    return sum(costs[name] for name in quantized) / max(1, sum(costs.values()))


def _decide(graph: Graph, node: onnx.NodeProto, recipe: Recipe) -> Rule:
    """Returns the first rule that matches; the last rule of a table matches everything."""
    return next(rule for rule in recipe.rules if _fits(graph, node, rule, recipe))


def _fits(graph: Graph, node: onnx.NodeProto, rule: Rule, recipe: Recipe) -> bool:
    if rule.operators and node.op_type not in rule.operators:
        return False
    if rule.within and not any(fnmatchcase(scope(node), pattern) for pattern in rule.within):
        return False
    kinds = (
        (rule.weighted, _is_weighted), (rule.stacked, _is_stacked), (rule.activations, _operands),
        (rule.grouped, _is_grouped), (rule.depthwise, _is_depthwise), (rule.interpolation, _is_interpolation),
        (rule.shaped, _is_shaped),
    )  # fmt: skip
    if any(wanted is not None and wanted != bool(found(graph, node)) for wanted, found in kinds):
        return False
    if rule.feeds_output is not None and rule.feeds_output != _feeds_output(graph, node, recipe):
        return False
    if rule.fewer_channels is not None and not _channels(graph, node) < rule.fewer_channels:
        return False
    return rule.fewer_rows is None or graph.rows(node) < rule.fewer_rows


def _is_weighted(graph: Graph, node: onnx.NodeProto) -> bool:
    """Returns whether the node multiplies a float activation with a constant matrix or kernel."""
    weight = graph.weight_of(node)
    readable = graph.is_float(node.input[0]) and not attribute(node, "transA", 0)
    return weight is not None and readable and len(graph.shape(weight)) == (4 if node.op_type == "Conv" else 2)


def _is_stacked(graph: Graph, node: onnx.NodeProto) -> bool:
    return any(name in graph.constants and len(graph.shape(name)) > 2 for name in node.input)


def _is_grouped(_: Graph, node: onnx.NodeProto) -> bool:
    return attribute(node, "group", 1) != 1


def _is_depthwise(graph: Graph, node: onnx.NodeProto) -> bool:
    """Returns whether each channel of ``node`` is a group: the kernel's second axis is that of a group's inputs."""
    return _is_grouped(graph, node) and graph.has_shape(node.input[1]) and graph.shape(node.input[1])[1] == 1


def _is_shaped(graph: Graph, node: onnx.NodeProto) -> bool:
    return graph.has_shape(node.input[0]) and graph.has_shape(node.output[0])


def _is_interpolation(_: Graph, node: onnx.NodeProto) -> bool:
    return interpolates(node)


def _operands(graph: Graph, node: onnx.NodeProto) -> tuple[str, ...]:
    """Returns the float activations that ``node`` reads, each once; the scales of a Resize do not count."""
    read = node.input[:1] if node.op_type == "Resize" else node.input
    return tuple(dict.fromkeys(x for x in read if x not in graph.constants and graph.is_float(x)))


def _channels(graph: Graph, node: onnx.NodeProto) -> int:
    weight = graph.weight_of(node)
    return min(graph.shape(weight)[:2]) if weight else 0


def _feeds_output(graph: Graph, node: onnx.NodeProto, recipe: Recipe) -> bool:
    return recipe.conv_outputs == "int8" and _quantizable_output(graph, node, recipe) in graph.outputs()


def _site(graph: Graph, node: onnx.NodeProto, recipe: Recipe) -> QuantizerSite:
    if not _is_weighted(graph, node):
        return OperandSite(node.name, _operands(graph, node))
    is_conv = node.op_type == "Conv"
    bias = _constant_bias(graph, node) if is_conv and recipe.quantize_bias else None
    output = _quantized_output(graph, node, recipe) if is_conv else None
    activation, weight = node.input[:2]
    return WeightedSite(
        node=node.name, activation=activation, weight=weight, weight_axis=output_axis(node), bias=bias, output=output
    )


def _constant_bias(graph: Graph, conv: onnx.NodeProto) -> str | None:
    return str(conv.input[2]) if len(conv.input) > 2 and conv.input[2] in graph.constants else None


def _quantized_output(graph: Graph, conv: onnx.NodeProto, recipe: Recipe) -> str | None:
    """Returns the convolution's output, or that of its ReLU, if ``recipe`` quantizes it."""
    name = _quantizable_output(graph, conv, recipe)
    if recipe.conv_outputs != "chained":
        return name if recipe.conv_outputs == "int8" else None
    # A ReLU that is a site itself reads the convolution's output in INT8.
    maker = graph.producer[name]
    fused = maker is conv or _decide(graph, maker, recipe).decision == "float"
    return name if fused and name not in graph.outputs() and _reaches_int8(graph, name, recipe) else None


def _reaches_int8(graph: Graph, name: str, recipe: Recipe) -> bool:
    """Returns whether a weighted INT8 operator or a LayerNorm reads ``name``, maybe as moved by other operators."""
    for node in graph.consumers[name]:
        if node.op_type in _MOVING:
            found = _reaches_int8(graph, node.output[0], recipe)
        else:
            int8 = _is_weighted(graph, node) and _decide(graph, node, recipe).decision == "int8"
            found = node.input[0] == name and (int8 or node.op_type == "LayerNormalization")
        if found:
            return True
    return False


def _quantizable_output(graph: Graph, conv: onnx.NodeProto, recipe: Recipe) -> str:
    """Returns the convolution's output, or that of a ReLU that is its only reader: engines fuse both operators.

    ONNX Runtime, whose recipes quantize every output, also fuses a Clip by constants (ReLU6).
    """
    consumers, bounded = graph.consumers[conv.output[0]], recipe.conv_outputs == "int8"
    if len(consumers) != 1 or conv.output[0] in graph.outputs():
        return str(conv.output[0])
    reader = consumers[0]
    clips = bounded and reader.op_type == "Clip" and all(x in graph.constants for x in reader.input[1:] if x)
    return str(reader.output[0] if reader.op_type == "Relu" or clips else conv.output[0])
