"""Computes the INT8 share of a graph: the share of MACs with constant weights that are computed in INT8.

The MACs of each product are counted once, on the float graph, and looked up by name for every contender, so all shares
have the same denominator. There are two shares: in the graph (both inputs of a product come from quantized values), and
as run (the operators that an engine executes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from misgnet_calibration.onnx_graph import Graph
from misgnet_runtime.storage.schema import Struct

PRODUCTS = ("Conv", "MatMul", "Gemm")
# Operators with which ONNX Runtime computes INT8 products.
_INT8_OPERATORS = (
    "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm",
    "DynamicQuantizeMatMul",
)  # fmt: skip
# Operators between a DequantizeLinear and a product that do not change values.
_PASSING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Concat", "Cast")
# Suffixes that engines append to the names of fused or copied operators.
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|/WithoutBiases|/Dequantization\w+|/fq_\w+)$")


class Product(Struct, frozen=True):
    """A product in a contender's graph."""

    # Names that the product may have in the float graph.
    names: list[str]
    int8: bool


class Share(Struct, frozen=True):
    """INT8 share of a graph."""

    # 0 to 1, by the MACs of the float graph.
    share: float
    # Number of INT8 products.
    nodes: int
    # Number of all products in the float graph.
    of: int
    # INT8 products that the float graph does not have.
    unknown: list[str]


def costs_of(model: onnx.ModelProto) -> dict[str, int]:
    """Returns the MACs for one image pair of each product with a constant weight, by name."""
    graph = Graph(model)
    costs = {node.name: graph.macs(node) for node in graph.nodes}
    return {name: cost for name, cost in costs.items() if cost}


def share_of(products: Iterable[Product], costs: Mapping[str, int]) -> Share:
    """Returns the INT8 share of ``costs``; each product of the float graph counts once."""
    found: set[str] = set()
    unknown: list[str] = []
    for product in products:
        if not product.int8:
            continue
        known = [name for name in map(plain, product.names) if name in costs]
        found.update(known)
        if not known:
            unknown.append(product.names[0])
    return Share(sum(costs[name] for name in found) / max(1, sum(costs.values())), len(found), len(costs), unknown)


def plain(name: str) -> str:
    """Returns ``name`` without suffixes that engines append."""
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name


def products_of(model: onnx.ModelProto) -> list[Product]:
    """Returns the products with constant weights of a Q/DQ graph; INT8 if weight and activation are dequantized."""
    producer = {name: node for node in model.graph.node for name in node.output}
    constants = {item.name: item.data_type for item in model.graph.initializer}
    return [
        Product([node.name], all(_is_int8(name, producer, constants) for name in node.input[:2]))
        for node in model.graph.node
        if node.op_type in PRODUCTS and _is_constant(node.input[1], producer, constants)
    ]


def run_products(optimised: onnx.ModelProto) -> list[Product]:
    """Returns the INT8 products of a graph that was optimised by ONNX Runtime."""
    # ONNX Runtime keeps the name of a fused operator, or names its output after it.
    nodes = [node for node in optimised.graph.node if node.op_type in _INT8_OPERATORS]
    return [Product([node.name, *node.output], True) for node in nodes]


Producers = Mapping[str, Any]
Constants = Mapping[str, int]


def _is_int8(name: str, producer: Producers, constants: Constants) -> bool:
    """Returns whether the value was dequantized from an 8-bit integer."""
    node = producer.get(name)
    if node is None:
        return False
    if node.op_type == "DequantizeLinear":
        return _bits_are_eight(node.input[0], producer, constants)
    return node.op_type in _PASSING and _is_int8(node.input[0], producer, constants)


def _bits_are_eight(name: str, producer: Producers, constants: Constants) -> bool:
    eight = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    if name in constants:
        return constants[name] in eight
    node = producer.get(name)
    if node is None or node.op_type != "QuantizeLinear":
        return False
    # Without a zero point, the ONNX standard specifies UINT8.
    return len(node.input) < 3 or not node.input[2] or constants.get(node.input[2], eight[0]) in eight


def _is_constant(name: str, producer: Producers, constants: Constants) -> bool:
    """Returns whether the value is a weight, quantized or not."""
    node = producer.get(name)
    if node is None:
        return name in constants
    carrying = (*_PASSING, "QuantizeLinear", "DequantizeLinear")
    return node.op_type == "Constant" or (node.op_type in carrying and _is_constant(node.input[0], producer, constants))
