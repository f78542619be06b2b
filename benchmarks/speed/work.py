"""Counts the MACs of one pair on the straight export."""

from __future__ import annotations

from math import prod

import onnx

from benchmarks.contest.share import PRODUCTS
from benchmarks.speed.report import Work
from misgnet_calibration.onnx_graph import Graph


def work_of(model: onnx.ModelProto) -> Work:
    """Returns the MACs of all convolutions and matrix products for one pair; other operators are not counted."""
    graph = Graph(model)
    products = [node for node in graph.nodes if node.op_type in PRODUCTS]
    weighted = [node for node in products if graph.weight_of(node)]
    between = [node for node in products if not graph.weight_of(node)]
    return Work(sum(map(graph.macs, weighted)), sum(_between(graph, node) for node in between))


def _between(graph: Graph, node: onnx.NodeProto) -> int:
    """Returns the MACs of a product of two activations: output values times the length of the reduced axis."""
    if node.op_type != "MatMul":
        return 0
    return prod(graph.shape(node.output[0])) * graph.shape(node.input[0])[-1]
