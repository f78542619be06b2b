"""Where a whole graph falls in two: both dates are joined to one batch, encoded, and sliced apart again."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx

from misgnet_calibration.onnx_graph import Graph, attribute
from misgnet_runtime.bundle import Interface
from misgnet_runtime.errors import GateFailed


@dataclass(frozen=True)
class DateMap:
    """A tensor that the encoder answers for both dates, and by name the Slice of the first date and of the second."""

    name: str
    slices: tuple[str, str]


@dataclass(frozen=True)
class Cut:
    """``join``: the Concat of both dates, by name; ``maps``: what is sliced apart behind it, in the graph's order."""

    join: str
    maps: tuple[DateMap, ...]


def find_cut(graph: Graph, interface: Interface) -> Cut:
    """Where ``graph``, which has ``interface``'s inputs, is cut; GateFailed where it has no such place."""
    join = _find_join(graph, [entry.name for entry in interface.inputs()])
    return Cut(join.name, _find_maps(graph, join))


def not_cut(reason: str) -> GateFailed:
    return GateFailed(f"the graph cannot be split into encoder and head: {reason}; build without --split")


def _find_join(graph: Graph, dates: list[str]) -> onnx.NodeProto:
    found = [node for node in graph.nodes if _joins(graph, node, dates)]
    if len(found) != 1:
        raise not_cut(f"{len(found)} operators join both dates to one batch, and it must be one")
    return found[0]


def _joins(graph: Graph, node: onnx.NodeProto, dates: list[str]) -> bool:
    """Whether ``node`` is a Concat along the batch whose inputs come from one date each, in their order."""
    if node.op_type != "Concat" or attribute(node, "axis", 0) != 0:
        return False
    return [graph.needed_for([name]).intersection(dates) for name in node.input] == [{date} for date in dates]


def _find_maps(graph: Graph, join: onnx.NodeProto) -> tuple[DateMap, ...]:
    """A Slice of one date begins or ends at a size that is computed, the batch; others have constants there."""
    slices: dict[str, dict[str, str]] = defaultdict(dict)
    for node in graph.nodes:
        if node.op_type == "Slice" and join.output[0] in graph.needed_for(node.input[:1]):
            begin, end = (name in graph.constants for name in node.input[1:3])
            if begin != end:
                slices[node.input[0]]["first" if begin else "second"] = node.name
    halved = [name for name, found in slices.items() if len(found) < 2]
    if halved or not slices:
        raise not_cut(f"behind '{join.name}' {halved or 'nothing'} is sliced into one date, and it must be both")
    return tuple(DateMap(name, (found["first"], found["second"])) for name, found in slices.items())
