"""Writes products with few rows or few terms as elementwise products and sums, which a GPU's compiler fuses.

The guidance multiplies maps of many pixels with matrices of two to eight graph nodes. TensorRT makes each such product
a kernel of its own that writes its result, and reads copies of the map in several layouts. A sum becomes part of the
kernels around it. On a CPU the products are faster.
"""

from __future__ import annotations

import numpy as np
import onnx

from misgnet_export.graph.algebra.rewriting import Rewriting, permutation

_LAST_TWO = (0, 1, 3, 2)
_FEWEST = 16  # graph nodes; a product with as many is worth a kernel


def small_products_as_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites both products of the guidance with its maps: of the assignment to nodes, and of the nodes' guidance."""
    rewriting = Rewriting(model)
    for node in rewriting.graph.nodes:
        if node.op_type == "Add":
            _rewrite_quadratic(rewriting, node)
        elif node.op_type == "MatMul":
            _rewrite_few_terms(rewriting, node)
    return rewriting.finish()


def _rewrite_quadratic(rewriting: Rewriting, add: onnx.NodeProto) -> None:
    """Rewrites S (x * x) + L x as the sum of (S * x + L) * x over the channels.

    S and L are (2, 1, K, C), x is (2, B, C, N). The sum runs along the last axis of the tokens (2, B, N, C).
    """
    graph = rewriting.graph
    square, linear = (graph.producer.get(name) for name in add.input)
    if square is None or linear is None or {square.op_type, linear.op_type} != {"MatMul"}:
        return
    factors, x = (square.input[0], linear.input[0]), linear.input[1]
    multiply = graph.producer.get(square.input[1])
    if multiply is None or multiply.op_type != "Mul" or list(multiply.input) != [x, x]:
        return
    if any(name not in graph.constants or len(graph.shape(name)) != 4 for name in factors):
        return
    if len(rewriting.dims(x)) != 4:
        return
    if graph.shape(factors[0]) != graph.shape(factors[1]) or graph.shape(factors[0])[2] >= _FEWEST:
        return
    if any(rewriting.reader(node.output[0], "Add") is not add for node in (square, linear)):
        return
    name = add.output[0]
    tokens = rewriting.add("Transpose", [x], f"{name}_tokens", add, perm=_LAST_TWO)
    tokens = rewriting.add("Unsqueeze", [tokens, _axis(rewriting, 2)], f"{name}_rows", add)  # (2, B, 1, N, C)
    gain, offset = (
        rewriting.constant(f"{factor}_rows", graph.constant(factor)[:, :, :, None]) for factor in factors
    )  # (2, 1, K, 1, C)
    slope = rewriting.add("Mul", [tokens, gain], f"{name}_square", add)
    slope = rewriting.add("Add", [slope, offset], f"{name}_slope", add)
    terms = rewriting.add("Mul", [slope, tokens], f"{name}_terms", add)
    rewriting.add("ReduceSum", [terms, _axis(rewriting, 4)], name, add, keepdims=0)
    rewriting.drop(add, square, linear)


def _rewrite_few_terms(rewriting: Rewriting, product: onnx.NodeProto) -> None:
    """Rewrites U^T Q as the sum of U[k] * Q[k] over the nodes k, for U (2, B, K, C) and Q (2, B, K, N)."""
    graph = rewriting.graph
    turn, right = graph.producer.get(product.input[0]), product.input[1]
    if turn is None or permutation(turn) != _LAST_TWO or right in graph.constants:
        return
    nodes, maps = rewriting.dims(turn.input[0]), rewriting.dims(right)
    # Both dates are stacked along the first axis. Heads of attention are not: its sums would have terms of N x N.
    if len(maps) != 4 or maps[0] != 2 or nodes[:1] != [2] or maps[2] is None or maps[2] >= _FEWEST:
        return
    name = product.output[0]
    left = rewriting.add("Unsqueeze", [turn.input[0], _axis(rewriting, 4)], f"{name}_left", product)
    right = rewriting.add("Unsqueeze", [right, _axis(rewriting, 3)], f"{name}_right", product)
    terms = rewriting.add("Mul", [left, right], f"{name}_terms", product)
    rewriting.add("ReduceSum", [terms, _axis(rewriting, 2)], name, product, keepdims=0)
    rewriting.drop(product)


def _axis(rewriting: Rewriting, axis: int) -> str:
    return rewriting.constant(f"axis_{axis}", np.array([axis], np.int64))
