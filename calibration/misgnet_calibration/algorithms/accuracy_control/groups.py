"""Which operators go back to float together: those of one module of the network, with weights or without."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from misgnet_calibration.algorithms.accuracy_control.decision import Group

if TYPE_CHECKING:  # names are told apart, and steps shown, where onnx is not installed
    from misgnet_calibration.onnx_graph.graph import Graph
    from misgnet_calibration.quantizer.placement import QuantizerSite

Depth = Literal["stage", "block", "module", "operator"]

UNWEIGHTED = " (unweighted)"
_COUNTED_FROM = 4

# What of a node's name, as ``backbone.block1.0.attn.q/MatMul_21``, names its group. Beneath ``backbone`` lie patch
# embeddings and blocks of attention and MLP; elsewhere the outermost module is one level of a decoder.
_NAMED = {
    "stage": re.compile(r"backbone\.[^./]+|[^./]+"),  # backbone.block1, backbone.patch_embed2, decode1, MGLNet0
    "block": re.compile(r"backbone\.block\d+\.\d+|backbone\.[^./]+|[^./]+"),  # backbone.block1.0
    "module": re.compile(r"backbone\.block\d+\.\d+(\.[^./]+)?|backbone\.[^./]+|[^./]+"),  # backbone.block1.0.attn
    "operator": re.compile(r".+"),
}


class Costed(Protocol):
    """A group, as it is searched with or as it is kept."""

    @property
    def name(self) -> str: ...
    @property
    def multiply_adds(self) -> int: ...


def groups_of(graph: Graph, sites: Sequence[QuantizerSite], depth: Depth = "module") -> tuple[Group, ...]:
    """The groups of ``sites``, in the order of their first ones.

    A module's operators without multiply-adds are a group of their own: they go back to float at no cost.
    """
    nodes: dict[str, list[str]] = defaultdict(list)
    costs: Counter[str] = Counter()
    for site in sites:
        cost = graph.macs(graph.by_name[site.node])
        name = group_name(site.node, depth) + ("" if cost else UNWEIGHTED)
        nodes[name].append(site.node)
        costs[name] += cost
    return tuple(Group(name, tuple(members), costs[name]) for name, members in nodes.items())


def ties_of(groups: Sequence[Group], sites: Sequence[QuantizerSite]) -> tuple[tuple[str, ...], ...]:
    """Names of the groups that quantize one and the same activation, for each such activation.

    It stays quantized until all of them are float, so reverting one alone tells nothing of it. NNCF makes one
    group of such operators; a decoder whose convolutions all end in INT8 would become a single group by that.
    """
    owner = {node: group.name for group in groups for node in group.nodes}
    readers: dict[str, dict[str, None]] = defaultdict(dict)
    for site in sites:
        for tensor in site.tensors:
            readers[tensor][owner[site.node]] = None
    return tuple(dict.fromkeys(tuple(names) for names in readers.values() if len(names) > 1))


def listed(names: Sequence[str], groups: Iterable[Costed]) -> str:
    """Names of ``groups`` in words; where all that cost nothing are among them, these are only counted."""
    free = [group.name for group in groups if not group.multiply_adds]
    if len(free) < _COUNTED_FROM or not set(free) <= set(names):
        return ", ".join(names) or "nothing"
    return ", ".join([f"all {len(free)} unweighted groups", *(name for name in names if name not in free)])


def group_name(node: str, depth: Depth) -> str:
    """The group of a node by its name; a node that is in no module is a group of its own."""
    found = _NAMED[depth].match(node)
    return found.group() if found else node
