"""How much of a graph is INT8: the share of the multiply-adds that constant weights take part in.

What a product costs is counted once, on the float graph, and looked up by name for every contender, so all shares have
the same denominator. Two shares are told apart: what a graph says (both inputs of a product come from quantized
values), and what an engine makes of it (the operators that it really runs).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from misgnet_calibration.onnx_graph import Graph
from misgnet_runtime.storage.schema import Struct

PRODUCTS = ("Conv", "MatMul", "Gemm")
# What ONNX Runtime computes INT8 products with.
_INT8_OPERATORS = (
    "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm",
    "DynamicQuantizeMatMul",
)  # fmt: skip
# What may stand between a DequantizeLinear and a product without changing a value.
_PASSING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Concat", "Cast")
# What engines append to the names of what they fuse or copy.
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|/WithoutBiases|/Dequantization\w+|/fq_\w+)$")


class Product(Struct, frozen=True):
    """A product as a contender has it, under the names that the float graph may know it by."""

    names: list[str]
    int8: bool


class Share(Struct, frozen=True):
    """``share``: 0 to 1 of the float graph's multiply-adds; ``unknown``: INT8 products that it does not have."""

    share: float
    nodes: int
    of: int
    unknown: list[str]


def costs_of(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-adds of one image pair by the name of each product with a constant weight."""
    graph = Graph(model)
    costs = {node.name: graph.macs(node) for node in graph.nodes}
    return {name: cost for name, cost in costs.items() if cost}


def share_of(products: Iterable[Product], costs: Mapping[str, int]) -> Share:
    """The share of INT8 in ``costs``; each product of the float graph counts once."""
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
    """``name`` without what engines append to it."""
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name


def products_of(model: onnx.ModelProto) -> list[Product]:
    """The products with constant weights of a Q/DQ graph; INT8 where weight and activation are dequantized."""
    producer = {name: node for node in model.graph.node for name in node.output}
    constants = {item.name: item.data_type for item in model.graph.initializer}
    return [
        Product([node.name], all(_is_int8(name, producer, constants) for name in node.input[:2]))
        for node in model.graph.node
        if node.op_type in PRODUCTS and _is_constant(node.input[1], producer, constants)
    ]


def run_products(optimised: onnx.ModelProto) -> list[Product]:
    """The INT8 products of the graph that ONNX Runtime has made for itself."""
    # It keeps a fused operator's name, or names its output after it.
    nodes = [node for node in optimised.graph.node if node.op_type in _INT8_OPERATORS]
    return [Product([node.name, *node.output], True) for node in nodes]


Producers = Mapping[str, Any]
Constants = Mapping[str, int]


def _is_int8(name: str, producer: Producers, constants: Constants) -> bool:
    """Whether the value was an 8-bit integer before it got here."""
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
    # Without a zero point the standard says UINT8.
    return len(node.input) < 3 or not node.input[2] or constants.get(node.input[2], eight[0]) in eight


def _is_constant(name: str, producer: Producers, constants: Constants) -> bool:
    """Whether the value is a weight, quantized or not."""
    node = producer.get(name)
    if node is None:
        return name in constants
    carrying = (*_PASSING, "QuantizeLinear", "DequantizeLinear")
    return node.op_type == "Constant" or (node.op_type in carrying and _is_constant(node.input[0], producer, constants))
