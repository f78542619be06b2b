"""Finds where a graph can be cut into encoder and head: the dates are joined to one batch, encoded and sliced apart."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx

from misgnet_calibration.onnx_graph import Graph, attribute
from misgnet_runtime.bundle import Interface
from misgnet_runtime.errors import GateFailed


@dataclass(frozen=True)
class DateMap:
    """A tensor that the encoder computes for both dates, and the names of the Slices of the first and second date."""

    name: str
    slices: tuple[str, str]


@dataclass(frozen=True)
class Cut:
    """The tensors at which a graph is cut into encoder and head."""

    join: str  # name of the Concat of both dates
    maps: tuple[DateMap, ...]  # tensors that are sliced apart after it, in the graph's order


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
    """Finds the Slices of one date: their start or end is computed from the batch, that of others is constant."""
    slices: dict[str, dict[str, str]] = defaultdict(dict)
    for node in graph.nodes:
        if node.op_type == "Slice" and join.output[0] in graph.needed_for(node.input[:1]):
            begin, end = (name in graph.constants for name in node.input[1:3])
            if begin != end:
                slices[node.input[0]]["first" if begin else "second"] = node.name
    halved = [name for name, found in slices.items() if len(found) < 2]
    if halved or not slices:
        raise not_cut(f"after '{join.name}', {halved or 'nothing'} is sliced into one date; both dates are required")
    return tuple(DateMap(name, (found["first"], found["second"])) for name, found in slices.items())
