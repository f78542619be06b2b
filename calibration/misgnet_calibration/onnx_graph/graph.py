"""An ONNX graph with the look-ups that quantization needs."""

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


class Graph:
    """Producers, consumers, constants and types of ``model``, as they were when this was made.

    The nodes are the model's own: who changes one through here changes the model.
    Raises InputError where two nodes share a name, as quantizer sites are found again by name.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.by_name = {node.name: node for node in self.nodes}
        if len(self.by_name) < len(self.nodes):
            found = f"{len(self.nodes)} nodes have only {len(self.by_name)} names"
            raise InputError(f"{found}; give each a name of its own")
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
        """Dimensions for one image pair: the batch is 1, and 2 where both dates lie behind one another.

        Raises InputError where a dimension cannot be inferred.
        """
        if name in self.constants:
            return list(self.constants[name].dims)
        return dimensions(self._types, name)

    def elem_type(self, name: str) -> int:
        """The tensor's type in TensorProto's numbers; 0 where it cannot be inferred."""
        if name in self.constants:
            return int(self.constants[name].data_type)
        return int(self._types[name].elem_type) if name in self._types else 0

    def is_float(self, name: str) -> bool:
        """Whether the tensor is float32."""
        return self.elem_type(name) == onnx.TensorProto.FLOAT

    def outputs(self) -> set[str]:
        return {value.name for value in self.model.graph.output}

    def needed_for(self, names: Iterable[str]) -> set[str]:
        """The tensors ``names`` and all that they are computed from."""
        needed = set(names)
        for node in reversed(self.nodes):
            if not needed.isdisjoint(node.output):
                needed.update(node.input)
        return needed

    def weight_of(self, node: onnx.NodeProto) -> str | None:
        """The constant weight of a convolution or matrix product."""
        weighted = node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in self.constants
        return str(node.input[1]) if weighted else None

    def rows(self, node: onnx.NodeProto) -> int:
        """How many output positions of one image pair the node's weight is applied to."""
        shape = self.shape(node.output[0])
        return int(np.prod([shape[0], *shape[2:]] if node.op_type == "Conv" else shape[:-1]))

    def macs(self, node: onnx.NodeProto) -> int:
        """MACs of one image pair that the node's constant weight takes part in; 0 without one.

        The encoder counts twice, as it runs once for each date.
        """
        weight = self.weight_of(node)
        return self.rows(node) * int(np.prod(self.shape(weight))) if weight else 0


def output_axis(node: onnx.NodeProto) -> int:
    """Where the output channels lie in the weight of a Conv, MatMul or Gemm."""
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def scope(node: onnx.NodeProto) -> str:
    """The module that a node comes from: ``backbone.block1.0.attn.q``."""
    return node.name.rpartition("/")[0]


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """The integer attribute ``name``, or ``default`` where the node has none."""
    return next((int(helper.get_attribute_value(a)) for a in node.attribute if a.name == name), default)
