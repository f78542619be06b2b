"""Simplifies attention: the scale moves into the query, and a single head needs two products a token instead of four.

The tokens x (B, N, C) read keys K and values V (B, M, C) of a reduced map, with M a small part of N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from misgnet_calibration.onnx_graph import Graph, attribute
from misgnet_export.graph.algebra.linear import Linear, linear_of
from misgnet_export.graph.algebra.rewriting import Rewriting, permutation

_MOVING = ("Reshape", "Transpose")
_HEADS = (0, 2, 1, 3)  # between (B, N, heads, d) and (B, heads, N, d)
_PARTS = (2, 0, 3, 1, 4)  # from (B, M, 2, heads, d), where 2 are the keys and the values, to (2, B, heads, M, d)


@dataclass(frozen=True, kw_only=True)
class _SingleHead:
    """The nodes of attention with one head, from the tokens to the sum with the last bias."""

    query: Linear
    scores: onnx.NodeProto
    softmax: onnx.NodeProto
    mixed: onnx.NodeProto  # product of the attention weights and the values
    output: Linear
    moving: tuple[onnx.NodeProto, ...]


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


def merge_single_head(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites softmax((x Wq + bq) K^T) V Wp + bp as softmax(x (Wq K^T) + bq K^T) (V Wp + bp) if there is one head.

    Two products with N rows remain of four, and no bias of N rows; the new products have M or C rows. The attention
    weights of a token sum to 1, so the last bias can be added to the values. With more heads the products with Wq and
    Wp would grow by the number of heads.
    """
    rewriting = Rewriting(model)
    for node in rewriting.graph.nodes:
        head = _single_head(rewriting, node) if node.op_type == "Softmax" else None
        if head is not None:
            _merge(rewriting, head)
    return rewriting.finish()


def fold_output_into_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites (softmax(q K^T) (x Wv + bv)) Wp + bp as softmax(q K^T) (x (Wv Wp) + bv Wp + bp) if there is one head.

    The attention weights of a token sum to 1, so the last bias can be added to the values. For engines with a fused
    kernel of softmax(q K^T) V, which :func:`merge_single_head` would take apart.
    """
    rewriting = Rewriting(model)
    for node in rewriting.graph.nodes:
        head = _single_head(rewriting, node) if node.op_type == "Softmax" else None
        source = _values_of(rewriting, head.mixed.input[1]) if head is not None else None
        if head is not None and source is not None:
            _fold_output(rewriting, head, source)
    return rewriting.finish()


def _values_of(rewriting: Rewriting, name: str) -> Linear | None:
    """Returns the linear layer of keys and values if its second half becomes the values ``name`` and only them."""
    graph = rewriting.graph
    squeeze = graph.producer.get(name)
    part = graph.producer.get(squeeze.input[0]) if squeeze is not None and squeeze.op_type == "Squeeze" else None
    turn = graph.producer.get(part.input[0]) if part is not None and part.op_type == "Slice" else None
    split = graph.producer.get(turn.input[0]) if permutation(turn) == _PARTS and turn is not None else None
    linear = linear_of(rewriting, graph.producer.get(split.input[0])) if split is not None else None
    if squeeze is None or part is None or turn is None or split is None or linear is None:
        return None
    second = _constants(graph, part, 1, 3) == [[1], [0]] and rewriting.dims(split.output[0])[2:4] == [2, 1]
    alone = all(len(graph.consumers[node.output[0]]) == 1 for node in (squeeze, part, split, linear.add))
    return linear if second and alone and split.op_type == "Reshape" else None


def _constants(graph: Graph, node: onnx.NodeProto, *indices: int) -> list[list[int]]:
    """Returns the values of the constant inputs of ``node`` at ``indices``; [] if one of them is missing."""
    names = [node.input[i] for i in indices if i < len(node.input)]
    return [graph.constant(name).tolist() for name in names] if all(x in graph.constants for x in names) else []


def _fold_output(rewriting: Rewriting, head: _SingleHead, source: Linear) -> None:
    """Multiplies the half of ``source`` that becomes the values with the weight of the last linear layer."""
    graph, output = rewriting.graph, head.output
    (weight, bias), (last, last_bias) = (
        [graph.constant(name).astype(np.float64) for name in (linear.product.input[1], linear.add.input[1])]
        for linear in (source, output)
    )
    half = weight.shape[1] // 2
    weight = np.hstack([weight[:, :half], weight[:, half:] @ last])
    bias = np.concatenate([bias[:half], bias[half:] @ last + last_bias])
    for node, value in ((source.product, weight), (source.add, bias)):
        node.input[1] = rewriting.constant(f"{node.input[1]}_with_output", value.astype(np.float32))
    join = head.moving[-1]
    join.output[0] = output.add.output[0]
    rewriting.drop(output.product, output.add)


def _single_head(rewriting: Rewriting, softmax: onnx.NodeProto) -> _SingleHead | None:
    graph = rewriting.graph
    scores, mixed = graph.producer.get(softmax.input[0]), rewriting.reader(softmax.output[0], "MatMul")
    if scores is None or mixed is None or (scores.op_type, mixed.input[0]) != ("MatMul", softmax.output[0]):
        return None
    shape = rewriting.dims(scores.output[0])
    if len(shape) != 4 or shape[1] != 1 or attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    turn = graph.producer.get(scores.input[0])
    split = graph.producer.get(turn.input[0]) if permutation(turn) == _HEADS and turn is not None else None
    query = linear_of(rewriting, graph.producer.get(split.input[0])) if split is not None else None
    back = rewriting.reader(mixed.output[0], "Transpose")
    join = rewriting.reader(back.output[0], "Reshape") if permutation(back) == _HEADS and back is not None else None
    product = rewriting.reader(join.output[0], "MatMul") if join is not None else None
    output = linear_of(rewriting, rewriting.reader(product.output[0], "Add")) if product is not None else None
    if turn is None or split is None or query is None or back is None or join is None or output is None:
        return None
    inner = (query.add, split, turn, scores)
    if split.op_type != "Reshape" or any(len(graph.consumers[node.output[0]]) != 1 for node in inner):
        return None
    tokens = [rewriting.dims(x) for x in (query.product.input[0], output.add.output[0])]
    if any(len(dims) != 3 or None in dims[1:] for dims in tokens) or tokens[0][1] != tokens[1][1]:
        return None
    return _SingleHead(
        query=query, scores=scores, softmax=softmax, mixed=mixed, output=output, moving=(split, turn, back, join)
    )


def _merge(rewriting: Rewriting, head: _SingleHead) -> None:
    query, scores, mixed, output = head.query, head.scores, head.mixed, head.output
    # With the axis of the head, these are no weights of a linear layer: they multiply keys and values, not tokens.
    weight, bias, last = (
        rewriting.constant(f"{name}_of_head", rewriting.graph.constant(name).astype(np.float32)[None])
        for name in (query.product.input[1], query.add.input[1], output.product.input[1])
    )
    keys, name, end = scores.input[1], scores.output[0], output.add.output[0]
    x = query.product.input[0]
    tokens = rewriting.add("Reshape", [x, rewriting.sizes(1, *rewriting.shape(x)[1:])], f"{name}_tokens", scores)
    by_token = rewriting.add("MatMul", [weight, keys], f"{name}_weight", scores)  # (B, 1, C, M)
    by_key = rewriting.add("MatMul", [bias, keys], f"{name}_bias", scores)  # (B, 1, 1, M)
    product = rewriting.add("MatMul", [tokens, by_token], f"{name}_product", scores)
    rewriting.add("Add", [product, by_key], name, scores)
    values = rewriting.add("MatMul", [mixed.input[1], last], f"{end}_product", mixed)  # (B, 1, M, C)
    values = rewriting.add("Add", [values, output.add.input[1]], f"{end}_values", mixed)
    rows = rewriting.add("MatMul", [head.softmax.output[0], values], f"{end}_rows", mixed)
    rewriting.add("Reshape", [rows, rewriting.sizes(*rewriting.shape(end)[1:])], end, mixed)
    rewriting.drop(query.product, query.add, scores, mixed, output.product, output.add, *head.moving)


def _fold(rewriting: Rewriting, multiply: onnx.NodeProto, product: onnx.NodeProto, scale: float) -> None:
    graph = rewriting.graph
    add = _behind(rewriting, product.input[0])
    linear = graph.producer.get(add.input[0]) if add is not None and add.op_type == "Add" else None
    if add is None or linear is None or graph.weight_of(linear) is None or add.input[1] not in graph.constants:
        return
    if linear.op_type != "MatMul":
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
