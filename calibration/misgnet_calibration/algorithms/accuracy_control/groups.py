"""Groups the operators that accuracy control reverts together: those of one module, with or without weights.

The modules of MISGNet are known. Of any other network, modules are taken apart until none has more than a small share
of the MACs: a few dozen groups, of which each costs about as much to revert. Operators whose names state no module are
joined to blocks with their neighbours in the order of the graph, up to the same share.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from misgnet_calibration.algorithms.accuracy_control.decision import Group
from misgnet_calibration.quantizer.known_modules import Depth

if TYPE_CHECKING:  # this module must import without onnx, to show reports
    from misgnet_calibration.onnx_graph.graph import Graph
    from misgnet_calibration.quantizer.placement import QuantizerSite

# The share of the MACs of all sites above which a module is taken apart, and up to which operators form a block.
LARGEST_SHARE = 1 / 24
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


def groups_of(graph: Graph, sites: Sequence[QuantizerSite], depth: Depth = "balanced") -> tuple[Group, ...]:
    """Returns the groups of ``sites``, in the order of their first sites.

    A module's operators without MACs form a separate group: reverting them costs no speed. At depth "balanced",
    operators that share a weight, such as those of an encoder that runs once for each date, are in one group.

    Args:
        graph: The float graph.
        sites: Its quantizer sites.
        depth: "balanced" for any network (:func:`balanced_names`), or a depth in the modules of MISGNet.
    """
    costs = {site.node: graph.macs(graph.by_name[site.node]) for site in sites}
    balanced = depth == "balanced"
    names = _balanced(graph, sites, costs) if balanced else {node: group_name(node, depth) for node in costs}
    nodes: dict[str, list[str]] = defaultdict(list)
    totals: Counter[str] = Counter()
    for node, cost in costs.items():
        name = names[node] + ("" if cost else UNWEIGHTED)
        nodes[name].append(node)
        totals[name] += cost
    return tuple(Group(name, tuple(members), totals[name]) for name, members in nodes.items())


def _balanced(graph: Graph, sites: Sequence[QuantizerSite], costs: Mapping[str, int]) -> dict[str, str]:
    """Returns :func:`balanced_names`, in which operators that share a weight count as one."""
    firsts: dict[str, str] = {}
    first_of = {site.node: firsts.setdefault(getattr(site, "weight", site.node), site.node) for site in sites}
    together: Counter[str] = Counter()
    for node, first in first_of.items():
        together[first] += costs[node]
    names = balanced_names({node: graph.scope_of(node) for node in together}, together)
    return {node: names[first] for node, first in first_of.items()}


def balanced_names(scopes: Mapping[str, str], costs: Mapping[str, int]) -> dict[str, str]:
    """Returns the name of each operator's group, from its module and its MACs; equal arguments give equal groups.

    A module with more than LARGEST_SHARE of all MACs is replaced by its parts, and those again, down to operators. The
    operators that are directly in such a module, or in none, form blocks: consecutive ones, until the next would exceed
    the share. A block is named after its first and its last operator.

    Args:
        scopes: By operator, in the order of the graph: its module, such as "encoder.layer1.0.conv1", or "".
        costs: By operator, its MACs.
    """
    largest = LARGEST_SHARE * sum(costs.values())
    names: dict[str, str] = {}

    def divide(module: str, nodes: Sequence[str], depth: int) -> None:
        if module and (len(nodes) == 1 or sum(costs[node] for node in nodes) <= largest):
            names.update(dict.fromkeys(nodes, module))
            return
        parts: dict[str, list[str]] = defaultdict(list)
        for node in nodes:
            path = scopes[node].split(".") if scopes[node] else []
            parts[".".join(path[: depth + 1]) if len(path) > depth else ""].append(node)
        for part, members in parts.items():
            if part:
                divide(part, members, depth + 1)
        for block in _blocks(parts.get("", []), costs, largest):
            names.update(dict.fromkeys(block, block[0] if len(block) == 1 else f"{block[0]} to {block[-1]}"))

    divide("", list(scopes), 0)
    return names


def _blocks(nodes: Sequence[str], costs: Mapping[str, int], largest: float) -> list[list[str]]:
    """Joins consecutive ``nodes`` whose MACs together are at most ``largest``."""
    blocks: list[list[str]] = []
    total = 0
    for node in nodes:
        if not blocks or total + costs[node] > largest:
            blocks.append([])
            total = 0
        blocks[-1].append(node)
        total += costs[node]
    return blocks


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
    """Returns the group of a node of MISGNet, from its name; a node outside of modules forms its own group."""
    found = _NAMED[depth].match(node)
    return found.group() if found else node
