"""Moves the scale of attention, 1 / sqrt(d), into the weights and bias of the query; exact if it is a power of two."""

from __future__ import annotations

import numpy as np
import onnx

from misgnet_export.graph.algebra.rewriting import Rewriting

_MOVING = ("Reshape", "Transpose")


def fold_attention_scale(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites Softmax(scale * (q k)) as Softmax(q' k) if q is a linear layer and the scale a power of two.

    d = 64 gives such a scale. Other scales are kept: they would round the weights a second time.
    """
    rewriting = Rewriting(model)
    graph = rewriting.graph
    for multiply in graph.nodes:
        if multiply.op_type != "Mul" or multiply.input[1] not in graph.constants:
            continue
        scale, product = graph.constant(multiply.input[1]), graph.producer.get(multiply.input[0])
        if scale.shape or not _is_power_of_two(float(scale)) or product is None or product.op_type != "MatMul":
            continue
        if rewriting.reader(multiply.output[0], "Softmax") and rewriting.reader(product.output[0], "Mul"):
            _fold(rewriting, multiply, product, float(scale))
    return rewriting.finish()


def _fold(rewriting: Rewriting, multiply: onnx.NodeProto, product: onnx.NodeProto, scale: float) -> None:
    graph = rewriting.graph
    add = _behind(rewriting, product.input[0])
    linear = graph.producer.get(add.input[0]) if add is not None and add.op_type == "Add" else None
    if add is None or linear is None or graph.weight_of(linear) is None or add.input[1] not in graph.constants:
        return
    if rewriting.reader(linear.output[0], "Add") is None:
        return
    for node in (linear, add):
        values = graph.constant(node.input[1]).astype(np.float32)
        node.input[1] = rewriting.constant(f"{node.input[1]}_scaled", values * np.float32(scale))
    product.output[0] = multiply.output[0]
    rewriting.drop(multiply)


def _is_power_of_two(scale: float) -> bool:
    return scale > 0 and np.frexp(scale)[0] == 0.5


def _behind(rewriting: Rewriting, name: str) -> onnx.NodeProto | None:
    """Returns the node that computes ``name``, skipping nodes that only move values; None if it has other readers."""
    node = rewriting.graph.producer.get(name)
    while node is not None and node.op_type in _MOVING and len(rewriting.graph.consumers[node.output[0]]) == 1:
        node = rewriting.graph.producer.get(node.input[0])
    return node if node is not None and len(rewriting.graph.consumers[node.output[0]]) == 1 else None
