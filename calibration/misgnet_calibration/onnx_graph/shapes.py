"""Infers types and shapes of a graph's tensors for one image pair: all symbolic dimensions of its inputs are 1."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from misgnet_runtime.errors import InputError

Types = dict[str, onnx.TypeProto.Tensor]


def types_of_one_pair(model: onnx.ModelProto) -> Types:
    """Returns type and shape of every tensor for a batch of 1; tensors that contain both dates have a batch of 2.

    Shapes stored with the graph are ignored. ``Shape`` nodes are replaced by constants as soon as the shape of their
    input is known, and inference is repeated until none are left, because onnx does not propagate their values into a
    Slice.
    """
    model = _with_batch_one(model)
    while True:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph = inferred.graph
        types = {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.input, *graph.output)}
        if not _fold_shape_nodes(model.graph, types):
            return types


def dimensions(types: Types, name: str) -> list[int]:
    """Returns the dimensions of tensor ``name``. Raises InputError if one of them is unknown."""
    if not has_dimensions(types, name):
        raise InputError(f"the shape of '{name}' cannot be inferred for one image pair; simplify the graph first")
    return [d.dim_value for d in types[name].shape.dim]


def has_dimensions(types: Types, name: str) -> bool:
    """Returns whether all dimensions of tensor ``name`` are known."""
    return name in types and types[name].HasField("shape") and all(map(_is_known, types[name].shape.dim))


def _is_known(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return bool(dim.HasField("dim_value"))


def _with_batch_one(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which inputs have fixed shapes and other tensors have none."""
    model = copied(model)
    del model.graph.value_info[:]
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = dim.dim_value or 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


def _fold_shape_nodes(graph: onnx.GraphProto, types: Types) -> bool:
    """Replaces Shape nodes with a known result by constants; returns whether there were any."""
    folded = False
    for node in list(graph.node):
        dims = types[node.input[0]].shape.dim if node.op_type == "Shape" and node.input[0] in types else ()
        if not dims or not all(map(_is_known, dims)):
            continue
        span = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        sizes = [d.dim_value for d in dims][span.get("start", 0) : span.get("end")]
        graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), node.output[0]))
        graph.node.remove(node)
        folded = True
    return folded


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of ``model``."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
