"""An ONNX graph with the look-ups that quantization needs; the model itself is copied, never changed."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


class Graph:
    """Producers, consumers, constants and shapes of ``model``. The batch counts as 1 in shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self.nodes: list[onnx.NodeProto] = list(self.model.graph.node)
        self.constants = {item.name: item for item in self.model.graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in set(node.input):
                self.consumers[name].append(node)
        values = [*self.model.graph.value_info, *self.model.graph.input, *self.model.graph.output]
        self._types = {value.name: value.type.tensor_type for value in values}

    def constant(self, name: str) -> NDArray[np.generic]:
        return numpy_helper.to_array(self.constants[name])

    def shape(self, name: str) -> list[int]:
        """Dimensions, the unknown (batch) ones as 1 and twice the batch as 2 is left as 1: per image pair date."""
        if name in self.constants:
            return list(self.constants[name].dims)
        return [d.dim_value or 1 for d in self._types[name].shape.dim]

    def is_float(self, name: str) -> bool:
        if name in self.constants:
            return self.constants[name].data_type == onnx.TensorProto.FLOAT
        return name in self._types and self._types[name].elem_type == onnx.TensorProto.FLOAT

    def outputs(self) -> set[str]:
        return {value.name for value in self.model.graph.output}

    def weight_of(self, node: onnx.NodeProto) -> str | None:
        """The constant weight of a convolution or matrix product."""
        if node.op_type in ("Conv", "MatMul", "Gemm") and len(node.input) > 1 and node.input[1] in self.constants:
            return node.input[1]
        return None

    def rows(self, node: onnx.NodeProto) -> int:
        """How many output positions of one image the node's weight is applied to."""
        shape = self.shape(node.output[0])
        return int(np.prod(shape[2:])) if node.op_type == "Conv" else int(np.prod(shape[1:-1]))

    def multiply_adds(self, node: onnx.NodeProto) -> int:
        """Multiply-adds of one image that the node's constant weight takes part in; 0 without one."""
        weight = self.weight_of(node)
        return self.rows(node) * int(np.prod(self.shape(weight))) if weight else 0


def scope(node: onnx.NodeProto) -> str:
    """The module that a node comes from: ``backbone.block1.0.attn.q``."""
    return node.name.rpartition("/")[0]
