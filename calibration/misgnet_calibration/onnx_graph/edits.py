"""Edits a graph: replaces constants (weights, scales of norms, biases) and sorts its nodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.onnx_graph.shapes import copied

Operand = tuple[str, int]  # a node's name, and the index of its input


def with_constants(model: onnx.ModelProto, values: Mapping[Operand, NDArray[np.float32]]) -> onnx.ModelProto:
    """Returns a copy of ``model`` in which the constants at the keys of ``values`` are replaced; shapes are kept.

    If other operands read such a constant as well, they keep the old one, and the new one gets its own name.
    """
    model = copied(model)
    graph = Graph(model)
    for (name, index), value in values.items():
        node = graph.by_name[name]
        old = node.input[index]
        changed = numpy_helper.from_array(value.astype(np.float32).reshape(graph.shape(old)), old)
        if _operands(graph, old) == 1:
            graph.constants[old].CopyFrom(changed)
            continue
        changed.name = node.input[index] = f"{old}_of_{name}_{index}"
        model.graph.initializer.append(changed)
    drop_unused(model)
    return model


def bias_of(graph: Graph, node: onnx.NodeProto) -> Operand | None:
    """Returns the operand with the constant that is added to each output channel of ``node``; None if there is none.

    For a convolution or a Gemm, this is its bias; for a matrix product, the constant of the Add that is its only
    reader. A Gemm that scales its operands has none: what is added to its bias would be scaled, too.
    """
    if node.op_type in ("Conv", "Gemm"):
        scaled = any(item.name in ("alpha", "beta") and item.f != 1 for item in node.attribute)
        present = len(node.input) > 2 and node.input[2] in graph.constants
        return (node.name, 2) if present and not scaled and len(graph.shape(node.input[2])) == 1 else None
    readers = graph.consumers[node.output[0]]
    if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] in graph.outputs():
        return None
    index = 1 - list(readers[0].input).index(node.output[0])
    name, channels = readers[0].input[index], _channels(graph, node.input[1])
    per_channel = name in graph.constants and graph.shape(name)[-1:] == [channels] == [_size(graph, name)]
    return (readers[0].name, index) if per_channel else None


def _channels(graph: Graph, name: str) -> int | None:
    """Returns the last dimension of the second operand of a product; None if it cannot be inferred."""
    return next(reversed(graph.shape(name)), None) if graph.has_shape(name) else None


def with_bias(model: onnx.ModelProto, corrections: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """Returns a copy of ``model`` with ``corrections`` (C,), by operator, added to the operators' constant biases.

    An operator without such a bias (:func:`bias_of`) is not changed: an additional Add would take the time that INT8
    saves.
    """
    graph = Graph(model)
    found = {name: bias_of(graph, graph.by_name[name]) for name in corrections}
    values = {}
    for name, operand in found.items():
        if operand is not None:
            bias = graph.constant(graph.by_name[operand[0]].input[operand[1]])
            values[operand] = (bias.astype(np.float64) + corrections[name].reshape(bias.shape)).astype(np.float32)
    return with_constants(model, values)


def drop_unused(model: onnx.ModelProto) -> None:
    """Removes initializers that no node reads and that are not outputs."""
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def put_in_order(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Replaces the nodes of ``model`` by ``nodes`` in topological order."""
    ordered = in_order(nodes)
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def in_order(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Sorts ``nodes`` topologically and stably: a node moves only if it must, to just before its first reader."""
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    ordered: dict[int, onnx.NodeProto] = {}

    def emit(index: int) -> None:
        if index not in ordered:
            for name in nodes[index].input:
                if name in producer:
                    emit(producer[name])
            ordered[index] = nodes[index]

    for index in range(len(nodes)):
        emit(index)
    return list(ordered.values())


def _operands(graph: Graph, name: str) -> int:
    """Returns the number of node inputs and graph outputs that ``name`` is used as."""
    return sum(list(node.input).count(name) for node in graph.consumers[name]) + (name in graph.outputs())


def _size(graph: Graph, name: str) -> int:
    return int(np.prod(graph.shape(name)))
