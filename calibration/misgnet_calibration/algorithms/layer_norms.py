"""Finds LayerNorms whose channels can be rescaled without changing the network, and rescales them.

Each channel of such a norm's output passes through nodes that only rearrange values, and is multiplied by constant
weights. Dividing the norm's scale and bias by a factor, and multiplying the weights' input channel by it, leaves every
product unchanged. A norm with any other reader, such as a residual sum, is not changed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from misgnet_calibration.onnx_graph.edits import Operand, with_constants
from misgnet_calibration.onnx_graph.graph import Graph, attribute
from misgnet_calibration.quantizer.scales import along

Factors = NDArray[np.float32]  # (C,), by channel of a norm's output

_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True)
class Reader:
    """An operator that multiplies the norm's channels by a constant weight."""

    node: str
    activation: str  # tensor that it reads
    input_axis: int  # axis of the weight along the norm's channels


@dataclass(frozen=True)
class Norm:
    """A LayerNormalization node whose channels can be rescaled."""

    node: str
    tensors: tuple[str, ...]  # tensors that hold its channels
    readers: tuple[Reader, ...]


def scalable_norms(graph: Graph, quantized: Collection[str]) -> list[Norm]:
    """Returns the norms whose factors can be moved into weights and that have a reader in ``quantized``."""
    found = [_norm(graph, node) for node in graph.nodes if node.op_type == "LayerNormalization"]
    return [norm for norm in found if norm and any(r.node in quantized for r in norm.readers)]


def rescaled(model: onnx.ModelProto, norms: Collection[Norm], factors: Mapping[str, Factors]) -> onnx.ModelProto:
    """Returns an equivalent model in which each norm's output is divided by its ``factors``, channel by channel."""
    graph = Graph(model)
    values: dict[Operand, NDArray[np.float32]] = {}
    for norm in norms:
        if norm.node not in factors:
            continue
        by = factors[norm.node].astype(np.float64)
        for index, name in enumerate(graph.by_name[norm.node].input[1:], 1):
            values[norm.node, index] = (graph.constant(name).astype(np.float64) / by).astype(np.float32)
        for reader in norm.readers:
            weight = graph.constant(graph.by_name[reader.node].input[1]).astype(np.float32)
            values[reader.node, 1] = multiplied(weight, by, reader.input_axis)
    return with_constants(model, values)


def multiplied(weight: NDArray[np.float32], by: NDArray[np.floating], axis: int) -> NDArray[np.float32]:
    """Returns ``weight`` with each input channel, along ``axis``, multiplied by its factor (C,)."""
    return (weight * along(by, axis, weight.ndim)).astype(np.float32)


def _norm(graph: Graph, node: onnx.NodeProto) -> Norm | None:
    if not graph.has_shape(node.output[0]):
        return None
    shape = graph.shape(node.output[0])
    last = attribute(node, "axis", -1) in (-1, len(shape) - 1)
    constant = all(name in graph.constants and graph.shape(name) == shape[-1:] for name in node.input[1:])
    if not (last and constant and shape[-1] > 1) or len(list(filter(None, node.output))) > 1:
        return None
    tensors: list[str] = []
    readers: list[Reader] = []
    complete = _follow(graph, str(node.output[0]), len(shape) - 1, tensors, readers)
    return Norm(node.name, tuple(tensors), tuple(readers)) if complete and readers else None


def _follow(graph: Graph, name: str, axis: int, tensors: list[str], readers: list[Reader]) -> bool:
    """Collects tensors and readers of the channels along ``axis`` of ``name``; returns False for any other reader."""
    tensors.append(name)
    if name in graph.outputs():
        return False
    for node in graph.consumers[name]:
        input_axis = _input_axis(graph, node, name, axis)
        onward = _output_axis(graph, node, name, axis)
        if input_axis is not None:
            readers.append(Reader(node.name, name, input_axis))
        elif onward is None or not _follow(graph, str(node.output[0]), onward, tensors, readers):
            return False
    return True


def _input_axis(graph: Graph, node: onnx.NodeProto, name: str, axis: int) -> int | None:
    """Returns the axis of the node's constant weight along the channels of ``name``; None if it has no such axis."""
    weight = graph.weight_of(node)
    if weight is None or list(node.input).count(name) != 1 or node.input[0] != name:
        return None
    if node.op_type == "Conv":
        return 1 if axis == 1 and attribute(node, "group", 1) == 1 else None
    matches = axis == len(graph.shape(name)) - 1 and len(graph.shape(weight)) == 2
    return 0 if node.op_type == "MatMul" and matches else None


def _output_axis(graph: Graph, node: onnx.NodeProto, name: str, axis: int) -> int | None:
    """Returns the axis of the node's output along the channels of ``name``; None unless it only rearranges values."""
    if node.input[0] != name or list(node.input).count(name) != 1:
        return None
    before = graph.shape(name)
    if node.op_type == "Transpose":
        perm = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "perm"), None)
        return (list(perm) if perm else list(range(len(before)))[::-1]).index(axis)
    if node.op_type not in _RESHAPING or not graph.has_shape(node.output[0]):
        return None
    after = graph.shape(node.output[0])
    kept = [i for i, size in enumerate(after) if size == before[axis]]
    return next((i for i in kept if math.prod(after[:i]) == math.prod(before[:axis])), None)
