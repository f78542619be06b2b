"""Rewrites linear layers of tokens as 1 x 1 convolutions, so that an MLP with a depthwise convolution stays a map.

The wide maps between both linear layers (four to eight times the channels) are then never transposed, only the narrow
tokens before and after the MLP. Engines fuse the bias, and in INT8 the requantization, into a convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_calibration.onnx_graph import attribute
from misgnet_export.graph.algebra.rewriting import Rewriting, permutation
from misgnet_export.graph.algebra.tokens import TO_MAP, TO_TOKENS

_ELEMENTWISE = ("Gelu", "Relu")  # compute each value independently, so a transpose may come before or after


@dataclass(frozen=True)
class Linear:
    """A MatMul with a constant weight (C_in, C_out), and the Add of a constant bias (C_out,), its only reader."""

    product: onnx.NodeProto
    add: onnx.NodeProto


def mlps_on_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites linear layers directly before and after a depthwise convolution as convolutions of the map."""
    rewriting = Rewriting(model)
    for conv in rewriting.graph.nodes:
        if conv.op_type == "Conv" and attribute(conv, "group", 1) > 1:
            _rewrite_before(rewriting, conv)
            _rewrite_after(rewriting, conv)
    return rewriting.finish()


def _rewrite_before(rewriting: Rewriting, conv: onnx.NodeProto) -> None:
    """Rewrites tokens -> linear -> grid -> map as tokens -> grid -> map -> 1 x 1 convolution."""
    graph = rewriting.graph
    turn = graph.producer.get(conv.input[0])
    grid = graph.producer.get(turn.input[0]) if permutation(turn) == TO_MAP and turn is not None else None
    linear = linear_of(rewriting, graph.producer.get(grid.input[0])) if grid is not None else None
    if turn is None or grid is None or linear is None or grid.op_type != "Reshape":
        return
    if any(len(graph.consumers[node.output[0]]) != 1 for node in (turn, grid, linear.add)):
        return
    name, product = turn.output[0], linear.product
    shape, (c_in, c_out) = rewriting.fixed_shape(name), rewriting.shape(product.input[1])
    if shape is None or shape[0] != c_out:  # the Reshape must leave the channels of each token together
        return
    sizes = rewriting.sizes(*shape[1:], c_in)
    gridded = rewriting.add("Reshape", [product.input[0], sizes], f"{name}_grid", product)
    turned = rewriting.add("Transpose", [gridded], f"{name}_map", product, perm=TO_MAP)
    _convolve(rewriting, linear, turned, name)
    rewriting.drop(grid, turn)


def _rewrite_after(rewriting: Rewriting, conv: onnx.NodeProto) -> None:
    """Rewrites map -> tokens -> elementwise -> linear as map -> elementwise -> 1 x 1 convolution -> tokens."""
    turn = rewriting.reader(conv.output[0], "Transpose")
    flat = rewriting.reader(turn.output[0], "Reshape") if permutation(turn) == TO_TOKENS and turn is not None else None
    if turn is None or flat is None:
        return
    chain = _elementwise(rewriting, flat.output[0])
    last = chain[-1].output[0] if chain else flat.output[0]
    product = rewriting.reader(last, "MatMul")
    linear = linear_of(rewriting, rewriting.reader(product.output[0], "Add")) if product is not None else None
    if linear is None or linear.product.input[0] != last:
        return
    tokens, channels = rewriting.dims(linear.add.output[0]), rewriting.dims(conv.output[0])[1:2]
    if len(tokens) != 3 or None in tokens[1:] or rewriting.dims(flat.output[0])[2:] != channels:
        return
    if chain:
        chain[0].input[0] = conv.output[0]
    name = linear.add.output[0]
    mapped = _convolve(rewriting, linear, last if chain else conv.output[0], f"{name}_map")
    turned = rewriting.add("Transpose", [mapped], f"{name}_grid", linear.add, perm=TO_TOKENS)
    rewriting.add("Reshape", [turned, rewriting.sizes(*rewriting.shape(name)[1:])], name, linear.add)
    rewriting.drop(turn, flat)


def _elementwise(rewriting: Rewriting, name: str) -> list[onnx.NodeProto]:
    """Returns the chain of elementwise nodes that starts at ``name``, as long as each is the only reader."""
    found = []
    while node := rewriting.reader(name, *_ELEMENTWISE):
        found.append(node)
        name = node.output[0]
    return found


def linear_of(rewriting: Rewriting, add: onnx.NodeProto | None) -> Linear | None:
    """Returns the linear layer that ends with ``add``; None if it does not end one."""
    graph = rewriting.graph
    product = graph.producer.get(add.input[0]) if add is not None and add.op_type == "Add" else None
    if add is None or product is None or product.op_type != "MatMul" or add.input[1] not in graph.constants:
        return None
    weight = graph.weight_of(product)
    alone = rewriting.reader(product.output[0], "Add") is add
    if weight is None or not alone or len(rewriting.shape(weight)) != 2:
        return None
    return Linear(product, add) if rewriting.shape(add.input[1]) == rewriting.shape(weight)[1:] else None


def _convolve(rewriting: Rewriting, linear: Linear, source: str, output: str) -> str:
    """Replaces ``linear`` by a 1 x 1 convolution of ``source``; returns ``output``."""
    weight = linear.product.input[1]
    kernel = rewriting.constant(f"{weight}_kernel", _kernel(rewriting.graph.constant(weight)))
    rewriting.drop(linear.product, linear.add)
    return rewriting.add("Conv", [source, kernel, linear.add.input[1]], output, linear.product, kernel_shape=[1, 1])


def _kernel(weight: NDArray[Any]) -> NDArray[Any]:
    """Reshapes (C_in, C_out) to (C_out, C_in, 1, 1)."""
    return np.ascontiguousarray(weight.T[:, :, None, None])
