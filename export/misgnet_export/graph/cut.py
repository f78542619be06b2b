"""Finds where a graph can be cut into encoder and head: the dates are joined to one batch, encoded and stacked."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from misgnet_calibration.onnx_graph import Graph, attribute
from misgnet_runtime.bundle import Interface
from misgnet_runtime.errors import GateFailed


@dataclass(frozen=True)
class DateMap:
    """A map (2B, C, h, w) that the encoder computes for both dates, and the head's only node that reads it."""

    name: str
    reader: str  # name of the Reshape that stacks the dates to (2, B, ...), or of a Cast before it


@dataclass(frozen=True)
class Cut:
    """The tensors at which a graph is cut into encoder and head."""

    join: str  # name of the Concat of both dates
    maps: tuple[DateMap, ...]  # tensors whose dates are stacked after it, in the graph's order


def find_cut(graph: Graph, interface: Interface) -> Cut:
    """Finds the cut of ``graph``, which has the inputs of ``interface``. Raises GateFailed if there is none."""
    join = _find_join(graph, [entry.name for entry in interface.inputs()])
    return Cut(join.name, _find_maps(graph, join))


def not_cut(reason: str) -> GateFailed:
    return GateFailed(f"the graph cannot be split into encoder and head: {reason}; build without --split")


def _find_join(graph: Graph, dates: list[str]) -> onnx.NodeProto:
    found = [node for node in graph.nodes if _joins(graph, node, dates)]
    if len(found) != 1:
        raise not_cut(f"{len(found)} operators join both dates to one batch; exactly one is required")
    return found[0]


def _joins(graph: Graph, node: onnx.NodeProto, dates: list[str]) -> bool:
    """Returns whether ``node`` is a Concat along the batch whose inputs depend on one date each, in order."""
    if node.op_type != "Concat" or attribute(node, "axis", 0) != 0:
        return False
    return [graph.needed_for([name]).intersection(dates) for name in node.input] == [{date} for date in dates]


def _find_maps(graph: Graph, join: onnx.NodeProto) -> tuple[DateMap, ...]:
    """Finds the first Reshapes from (2B, ...) to (2, B, ...) after ``join``."""
    found: list[DateMap] = []
    stacked: set[str] = set()
    for node in graph.nodes:
        needed = graph.needed_for(node.input[:1]) if _stacks(graph, node) else set()
        if join.output[0] in needed and needed.isdisjoint(stacked):
            cast = graph.producer[node.input[0]]
            reader = cast if cast.op_type == "Cast" else node
            found.append(DateMap(reader.input[0], reader.name))
            stacked.update(node.output)
    if not found:
        raise not_cut(f"after '{join.name}', no operator stacks both dates as (2, B, ...)")
    return tuple(found)


def _stacks(graph: Graph, node: onnx.NodeProto) -> bool:
    """Returns whether ``node`` splits the batch of 2B into two dates."""
    if node.op_type != "Reshape" or node.input[1] not in graph.constants:
        return False
    return list(graph.constant(node.input[1])[:2]) == [2, -1]
