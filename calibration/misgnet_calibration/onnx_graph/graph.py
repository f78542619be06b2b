"""Wraps an ONNX graph with the queries that quantization needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from misgnet_calibration.onnx_graph.shapes import Types, dimensions, has_dimensions, types_of_one_pair
from misgnet_runtime.errors import InputError

# Prefix of the names of interpolation matrices: constants of a product that replaces a resize, not trained weights.
INTERPOLATION = "interpolation_"
CONVOLUTIONS = ("Conv", "ConvTranspose")
_WEIGHTED = (*CONVOLUTIONS, "MatMul", "Gemm")
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


class Graph:
    """Producers, consumers, constants and types of ``model`` at the time of construction.

    The nodes are the model's own, so changing a node changes the model.

    Raises:
        InputError: Two nodes have the same name (quantizer sites are identified by node name), or a node contains a
            graph of its own, whose reads of outer tensors no query would find.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.by_name = {node.name: node for node in self.nodes}
        if len(self.by_name) < len(self.nodes):
            found = f"{len(self.nodes)} nodes have only {len(self.by_name)} names"
            raise InputError(f"{found}; give each node a unique name")
        for node in self.nodes:
            if any(item.type in _GRAPHS for item in node.attribute):
                found = f"{node.op_type} '{node.name}' contains a graph of its own"
                raise InputError(f"{found}; export the network without control flow (If, Loop, Scan)")
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

    def has_shape(self, name: str) -> bool:
        """Returns whether :meth:`shape` knows all dimensions of the tensor."""
        return name in self.constants or has_dimensions(self._types, name)

    def elem_type(self, name: str) -> int:
        """Returns the tensor's type as a number of TensorProto; 0 if it cannot be inferred."""
        if name in self.constants:
            return int(self.constants[name].data_type)
        return int(self._types[name].elem_type) if name in self._types else 0

    def is_float(self, name: str) -> bool:
        """Returns whether the tensor is float32."""
        return self.elem_type(name) == onnx.TensorProto.FLOAT

    def scope_of(self, node: str) -> str:
        """Returns the :func:`scope` of the node with this name."""
        return scope(self.by_name[node])

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
        weighted = node.op_type in _WEIGHTED and node.input[1] in self.constants
        return str(node.input[1]) if weighted and not interpolates(node) else None

    def rows(self, node: onnx.NodeProto) -> int:
        """Returns the number of positions of one image pair that the node's weight is applied to.

        These are positions of the output; of a transposed convolution, those of its input, each of which is multiplied
        with the whole kernel. Raises InputError if the shape cannot be inferred.
        """
        shape = self.shape(_applied_at(node))
        return int(np.prod([shape[0], *shape[2:]] if node.op_type in CONVOLUTIONS else shape[:-1]))

    def macs(self, node: onnx.NodeProto) -> int:
        """Returns the MACs of one image pair with the node's constant weight; 0 if it has none.

        The encoder counts twice because it runs once per date. Of a grouped convolution, only products within a group
        count: its weight has no others. An operator whose shape cannot be inferred counts 0; it stays float.
        """
        weight = self.weight_of(node)
        if weight is None or not self.has_shape(_applied_at(node)):
            return 0
        used = self.shape(weight) if node.op_type in CONVOLUTIONS else self.shape(weight)[-2:]  # by each position
        return self.rows(node) * int(np.prod(used))


def _applied_at(node: onnx.NodeProto) -> str:
    """Returns the tensor with one position for each use of the node's weight."""
    return str(node.input[0] if node.op_type == "ConvTranspose" else node.output[0])


def output_axis(node: onnx.NodeProto) -> int:
    """Returns the axis of the output channels in the weight of a Conv, ConvTranspose, MatMul or Gemm.

    A grouped ConvTranspose, with a weight (C_in, C_out / groups, kh, kw), has no such axis: output channels are spread
    over axis 1 and the groups of axis 0, so entry j of axis 1 belongs to one channel of every group.

    Raises:
        ValueError: ``node`` is a grouped ConvTranspose.
    """
    if node.op_type == "ConvTranspose":
        if attribute(node, "group", 1) != 1:
            raise ValueError(f"the weight of the grouped ConvTranspose '{node.name}' has no axis of output channels")
        return 1
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def interpolates(node: onnx.NodeProto) -> bool:
    """Returns whether ``node`` is a product with an interpolation matrix, which replaces a resize."""
    return node.op_type == "MatMul" and any(name.startswith(INTERPOLATION) for name in node.input)


def scope(node: onnx.NodeProto) -> str:
    """Returns the module that a node comes from, such as ``backbone.block1.0.attn.q``; "" if its name has none.

    Two forms of names are read: MODULE/OPERATOR_TENSOR, which this project writes (a tensor's name may contain
    slashes), and paths such as ``/layer1/layer1.0/conv1/Conv`` of other exporters, whose module is
    ``layer1.layer1.0.conv1``.
    """
    module, _, operator = node.name.partition("/")
    if operator.startswith(f"{node.op_type}_"):
        return module
    return node.name.rpartition("/")[0].strip("/").replace("/", ".")


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Returns the integer attribute ``name`` of ``node``, or ``default`` if the node does not have it."""
    return next((int(helper.get_attribute_value(a)) for a in node.attribute if a.name == name), default)


def opset_of(model: onnx.ModelProto) -> int:
    """Returns the version of ONNX's own operators that ``model`` uses."""
    return max((int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
