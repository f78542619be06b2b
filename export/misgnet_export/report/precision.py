"""Shows a graph's precision as tables and as a picture: the operators in INT8, FP16 and FP32, and the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from misgnet_calibration.algorithms.accuracy_control.groups import group_name
from misgnet_runtime.bundle import NodePlacement, Quantization
from misgnet_runtime.storage.atomic import replace_file
from misgnet_runtime.tables import cell, plain_table

PRECISIONS = ("int8", "float16", "float32")
NAMES = {"int8": "INT8", "float16": "FP16", "float32": "FP32"}
# The colours differ in lightness as well as in hue, for colour-blind readers.
COLOURS = {"int8": "#1b7f6b", "float16": "#e0b83a", "float32": "#c2410c"}


@dataclass(frozen=True)
class Block:
    """One part of the network: its operators and MACs in each precision."""

    name: str
    operators: dict[str, int]
    multiply_adds: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.multiply_adds.values())


def blocks(placement: Sequence[NodePlacement]) -> list[Block]:
    """Returns the parts in the order of the graph: ``backbone.block1.0``, ``MGLNet0``, ``decode1``."""
    found: dict[str, Block] = {}
    for entry in placement:
        name = block_of(entry.node)
        block = found.setdefault(name, Block(name, dict.fromkeys(PRECISIONS, 0), dict.fromkeys(PRECISIONS, 0)))
        block.operators[entry.precision] += 1
        block.multiply_adds[entry.precision] += entry.multiply_adds
    return list(found.values())


def block_of(node: str) -> str:
    """Returns the part of the network that a node belongs to, from its name; "graph" if it belongs to none."""
    module = node.rpartition("/")[0]
    return group_name(module, "block") if module else "graph"


def share_table(quantization: Quantization) -> Table:
    """Returns a table with the share of the weights' MACs and the number of operators in each precision."""
    table = plain_table(f"{quantization.graph} ({quantization.recipe})")
    for name in ("precision", "MACs", "operators"):
        table.add_column(name, justify="left" if name == "precision" else "right")
    for name, share in quantization.shares().items():
        count = sum(entry.precision == name for entry in quantization.placement)
        table.add_row(NAMES[name], f"{100 * share:.2f} %", str(count))
    return table


def block_table(quantization: Quantization) -> Table:
    """Returns a table with one row per block: its share of all MACs, their precision, and its operators."""
    table = plain_table("By block")
    table.add_column("block", overflow="fold")
    for name in ("MACs", *(NAMES[p] for p in PRECISIONS)):
        table.add_column(name, justify="right")
    table.add_column("operators")
    found = blocks(quantization.placement)
    whole = max(1, sum(block.total for block in found))
    for block in found:
        parts = [f"{100 * block.multiply_adds[p] / block.total:.1f} %" if block.total else "-" for p in PRECISIONS]
        operators = ", ".join(f"{block.operators[p]} {NAMES[p]}" for p in PRECISIONS if block.operators[p])
        table.add_row(cell(block.name), f"{100 * block.total / whole:.1f} %", *parts, operators)
    return table


def rule_table(quantization: Quantization) -> Table:
    """Returns a table of the rules that applied: the number of operators, the reason and its source."""
    table = plain_table("Why")
    for name in ("rule", "operators", "why", "source"):
        table.add_column(name, overflow="fold")
    for rule in quantization.rules:
        count = sum(entry.rule == rule.name for entry in quantization.placement)
        table.add_row(*map(cell, (rule.name, str(count), rule.why, rule.source)))
    return table


def draw_precision(quantizations: Sequence[Quantization], path: Path, *, force: bool = True) -> None:
    """Writes a picture, PNG or SVG by its suffix. Needs matplotlib.

    For each graph it shows the operators in order, one row per block, coloured by precision, and beside them the MACs.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [blocks(q.placement) for q in quantizations]
    figure = Figure(figsize=(15, 2 + 0.26 * sum(map(len, rows))), layout="constrained")
    axes = figure.subplots(
        len(rows), 2, squeeze=False, width_ratios=(3, 1), height_ratios=[max(1, len(row)) for row in rows]
    )
    for quantization, found, (left, right) in zip(quantizations, rows, axes, strict=True):
        _draw_operators(left, quantization, found)
        _draw_costs(right, found)
    handles = [Patch(color=COLOURS[p], label=NAMES[p]) for p in PRECISIONS]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    with replace_file(path, force=force) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=110)


def _draw_operators(axis: Any, quantization: Quantization, found: list[Block]) -> None:
    """Draws one square per operator; those with weights are outlined."""
    from matplotlib.patches import Rectangle

    row = {block.name: index for index, block in enumerate(found)}
    column: dict[str, int] = {}
    for entry in quantization.placement:
        name = block_of(entry.node)
        x = column[name] = column.get(name, -1) + 1
        edge = "black" if entry.multiply_adds else "none"
        square = Rectangle((x, row[name] - 0.4), 0.85, 0.8, facecolor=COLOURS[entry.precision], edgecolor=edge)
        axis.add_patch(square)
    axis.set(xlim=(-0.5, max(column.values(), default=0) + 1.5), ylim=(len(found) - 0.4, -0.6))
    axis.set_yticks(range(len(found)), [block.name for block in found], fontsize=8)
    axis.set_xlabel("operators in the order of the graph; outlined: with weights")
    axis.set_title(f"{quantization.graph}, recipe {quantization.recipe}", loc="left")


def _draw_costs(axis: Any, found: list[Block]) -> None:
    left = [0.0] * len(found)
    for precision in PRECISIONS:
        widths = [block.multiply_adds[precision] / 1e6 for block in found]
        axis.barh(range(len(found)), widths, left=left, color=COLOURS[precision], height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set(ylim=(len(found) - 0.4, -0.6), xlabel="million MACs per pair, operators with weights")
    axis.set_yticks([])
