"""Follows the batch through a graph that was exported for a batch of 1, where sizes alone do not show it.

A tensor's batch is a factor of one of its axes: (L, B * heads, d) has it in axis 1. What was lost in the export is
guessed: transposes, products and reductions move it as they move axes, a Reshape keeps its position in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx
from onnx import helper

from misgnet_calibration.onnx_graph import attribute

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
Sizes = Mapping[str, Sequence[int]]  # of tensors for a batch of 1; 0 is unknown


class Position(NamedTuple):
    """Where the batch is in a tensor."""

    axis: int
    before: int = 1  # elements of the axis before it: 1 if it is the first factor, the whole size if it is the last


def batch_axes(graph: onnx.GraphProto, inputs: Sequence[str], sizes: Sizes) -> dict[str, Position]:
    """Returns where the batch is in each tensor that is computed from ``inputs``, as far as it can be guessed."""
    found = {name: Position(0) for name in inputs}
    for node in graph.node:
        source = next((name for name in node.input if name in found), None)
        if source is None or not sizes.get(source):
            continue
        for output in node.output:
            if output in sizes and (position := _moved(node, found[source], sizes[source], sizes[output])):
                found[output] = position
    return found


def regrouped(position: Position, start: Sequence[int], target: Sequence[int]) -> Position | None:
    """Returns where the batch is after a Reshape from ``start`` to ``target``, sizes for a batch of 1.

    Its place in memory stays, but that may be between two axes: then it belongs to the one behind it if that has size
    1, continues the axis that had the batch, or was divided from a larger one; else to the one before.
    """
    axis, before = position
    outer, tail = math.prod(start[:axis]) * before, start[axis] // before
    prefix = 1
    for index, size in enumerate(target):
        if prefix == outer:
            rest = [size for size in (tail, *start[axis + 1 :]) if size > 1]
            kept = tail > 1 and (size == tail or (size % tail == 0 and len(target) >= len(start)))
            divided = bool(rest) and size < rest[0]
            return Position(index) if index == 0 or size == 1 or kept or divided else _last(index - 1, target)
        if prefix < outer < prefix * size:
            return Position(index, outer // prefix) if prefix * size % outer == 0 == outer % prefix else None
        prefix *= size
    return _last(len(target) - 1, target) if target and prefix == outer else None


def _last(axis: int, sizes: Sequence[int]) -> Position:
    return Position(axis, sizes[axis])


def _moved(node: onnx.NodeProto, at: Position, start: Sequence[int], end: Sequence[int]) -> Position | None:
    """Returns where the batch is in an output of ``node``."""
    if node.op_type in _RESHAPES:
        return regrouped(at, start, end) if all(start) and all(end) else None
    if node.op_type == "Concat" and attribute(node, "axis", 0) % len(start) == at.axis:
        return Position(at.axis, len(node.input) * at.before)  # blocks, each with the whole batch
    axis = _moved_axis(node, at.axis, len(start), len(end))
    return Position(axis, min(at.before, end[axis]) or 1) if 0 <= axis < len(end) else None


def _moved_axis(node: onnx.NodeProto, axis: int, start: int, end: int) -> int:
    """Returns the axis of the output that is ``axis`` of the input; they have ``end`` and ``start`` axes."""
    if node.op_type == "Transpose":
        order = next((list(one.ints) for one in node.attribute if one.name == "perm"), list(range(start))[::-1])
        return order.index(axis)
    if end < start:  # a Gather of one element, or a reduction
        values = [helper.get_attribute_value(one) for one in node.attribute if one.name in ("axis", "axes")]
        removed = values[0] if values and isinstance(values[0], list) else values or [0]
        return axis - sum(one % start < axis for one in removed)
    return axis + end - start  # operands of fewer axes are broadcast along the first ones
