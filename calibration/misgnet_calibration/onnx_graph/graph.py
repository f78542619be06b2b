"""Wraps an ONNX graph with the queries that quantization needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from misgnet_calibration.onnx_graph.shapes import Types, dimensions, types_of_one_pair
from misgnet_runtime.errors import InputError

# Prefix of the names of interpolation matrices: constants of a product that replaces a resize, not trained weights.
INTERPOLATION = "interpolation_"


class Graph:
    """Producers, consumers, constants and types of ``model`` at the time of construction.

    The nodes are the model's own, so changing a node changes the model.

    Raises:
        InputError: Two nodes have the same name; quantizer sites are identified by node name.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.by_name = {node.name: node for node in self.nodes}
        if len(self.by_name) < len(self.nodes):
            found = f"{len(self.nodes)} nodes have only {len(self.by_name)} names"
            raise InputError(f"{found}; give each node a unique name")
        self.constants = {item.name: item for item in model.graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers[name].append(node)

    @cached_property
    def _types(self) -> Types:
        return types_of_one_pair(self.model)

    def constant(self, name: str) -> NDArray[np.generic]:
        return numpy_helper.to_array(self.constants[name])

    def shape(self, name: str) -> list[int]:
        """Returns the dimensions for one image pair: the batch is 1, or 2 where both dates are joined in the batch.

        Raises InputError if a dimension cannot be inferred.
        """
        if name in self.constants:
            return list(self.constants[name].dims)
        return dimensions(self._types, name)

    def elem_type(self, name: str) -> int:
        """Returns the tensor's type as a number of TensorProto; 0 if it cannot be inferred."""
        if name in self.constants:
            return int(self.constants[name].data_type)
        return int(self._types[name].elem_type) if name in self._types else 0

    def is_float(self, name: str) -> bool:
        """Returns whether the tensor is float32."""
        return self.elem_type(name) == onnx.TensorProto.FLOAT

    def outputs(self) -> set[str]:
        return {value.name for value in self.model.graph.output}

    def needed_for(self, names: Iterable[str]) -> set[str]:
        """Returns the tensors ``names`` and all tensors that they are computed from."""
        needed = set(names)
        for node in reversed(self.nodes):
            if not needed.isdisjoint(node.output):
                needed.update(node.input)
        return needed

    def weight_of(self, node: onnx.NodeProto) -> str | None:
        """Returns the constant weight of a convolution or matrix product; None if there is none.

        An interpolation matrix is not a weight.
        """
        weighted = node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in self.constants
        return str(node.input[1]) if weighted and not interpolates(node) else None

    def rows(self, node: onnx.NodeProto) -> int:
        """Returns the number of output positions of one image pair that the node's weight is applied to."""
        shape = self.shape(node.output[0])
        return int(np.prod([shape[0], *shape[2:]] if node.op_type == "Conv" else shape[:-1]))

    def macs(self, node: onnx.NodeProto) -> int:
        """Returns the MACs of one image pair with the node's constant weight; 0 if it has none.

        The encoder counts twice because it runs once per date.
        """
        weight = self.weight_of(node)
        if weight is None:
            return 0
        used = self.shape(weight) if node.op_type == "Conv" else self.shape(weight)[-2:]  # by each output position
        return self.rows(node) * int(np.prod(used))


def output_axis(node: onnx.NodeProto) -> int:
    """Returns the axis of the output channels in the weight of a Conv, MatMul or Gemm."""
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def interpolates(node: onnx.NodeProto) -> bool:
    """Returns whether ``node`` is a product with an interpolation matrix, which replaces a resize."""
    return node.op_type == "MatMul" and any(name.startswith(INTERPOLATION) for name in node.input)


def scope(node: onnx.NodeProto) -> str:
    """Returns the module that a node comes from: ``backbone.block1.0.attn.q``."""
    return node.name.rpartition("/")[0]


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Returns the integer attribute ``name`` of ``node``, or ``default`` if the node does not have it."""
    return next((int(helper.get_attribute_value(a)) for a in node.attribute if a.name == name), default)
