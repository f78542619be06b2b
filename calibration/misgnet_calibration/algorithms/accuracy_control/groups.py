"""Groups the operators that accuracy control reverts together: those of one module, with or without weights."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from misgnet_calibration.algorithms.accuracy_control.decision import Group

if TYPE_CHECKING:  # this module must import without onnx, to show reports
    from misgnet_calibration.onnx_graph.graph import Graph
    from misgnet_calibration.quantizer.placement import QuantizerSite

Depth = Literal["stage", "block", "module", "operator"]

UNWEIGHTED = " (unweighted)"
_COUNTED_FROM = 4

# The part of a node's name, such as ``backbone.block1.0.attn.q/MatMul_21``, that names its group. ``backbone`` contains
# patch embeddings and blocks of attention and MLP; elsewhere the outermost module is one stage of a decoder.
_NAMED = {
    "stage": re.compile(r"backbone\.[^./]+|[^./]+"),  # backbone.block1, backbone.patch_embed2, decode1, MGLNet0
    "block": re.compile(r"backbone\.block\d+\.\d+|backbone\.[^./]+|[^./]+"),  # backbone.block1.0
    "module": re.compile(r"backbone\.block\d+\.\d+(\.[^./]+)?|backbone\.[^./]+|[^./]+"),  # backbone.block1.0.attn
    "operator": re.compile(r".+"),
}


class Costed(Protocol):
    """A group, either of a search or of a manifest."""

    @property
    def name(self) -> str: ...
    @property
    def multiply_adds(self) -> int: ...


def groups_of(graph: Graph, sites: Sequence[QuantizerSite], depth: Depth = "module") -> tuple[Group, ...]:
    """Returns the groups of ``sites``, in the order of their first sites.

    A module's operators without MACs form a separate group: reverting them costs no speed.
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
    """Returns ties: for each activation that several groups quantize, the names of these groups.

    Such an activation stays quantized until all of these groups are float, so reverting one alone shows no effect.
    NNCF merges such operators into one group; a decoder whose convolutions all end in INT8 would then be one group.
    """
    owner = {node: group.name for group in groups for node in group.nodes}
    readers: dict[str, dict[str, None]] = defaultdict(dict)
    for site in sites:
        for tensor in site.tensors:
            readers[tensor][owner[site.node]] = None
    return tuple(dict.fromkeys(tuple(names) for names in readers.values() if len(names) > 1))


def listed(names: Sequence[str], groups: Iterable[Costed]) -> str:
    """Returns ``names`` as text; if they contain all groups without MACs, these are only counted."""
    free = [group.name for group in groups if not group.multiply_adds]
    if len(free) < _COUNTED_FROM or not set(free) <= set(names):
        return ", ".join(names) or "nothing"
    return ", ".join([f"all {len(free)} unweighted groups", *(name for name in names if name not in free)])


def group_name(node: str, depth: Depth) -> str:
    """Returns the group of a node, from its name; a node outside of modules forms its own group."""
    found = _NAMED[depth].match(node)
    return found.group() if found else node
