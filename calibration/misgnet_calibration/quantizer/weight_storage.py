"""Stores the remaining float weights of a quantized graph as float16, at half the size."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.onnx_graph.shapes import copied
from misgnet_calibration.quantizer.float16 import fits_float16

_FROM = 4096  # values; for smaller weights, the Cast would not pay off


def compress_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores large float32 weights as float16 followed by a Cast, which engines fold when they load the graph.

    Only weights that nothing but convolutions and matrix products read are converted; scales, biases and guards stay
    exact.
    """
    model = copied(model)
    graph = Graph(model)
    casts = []
    for item in model.graph.initializer:
        if not _worth_compressing(graph, item):
            continue
        name, half = item.name, f"{item.name}_stored"
        casts.append(helper.make_node("Cast", [half], [name], f"/Cast_{half}", to=TensorProto.FLOAT))
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), half))
    nodes = [*casts, *graph.nodes]
    merged = onnx.GraphProto()
    merged.node.extend(nodes)
    del model.graph.node[:]
    model.graph.node.extend(merged.node)
    onnx.checker.check_model(model)
    return model


def _worth_compressing(graph: Graph, item: onnx.TensorProto) -> bool:
    large = item.data_type == TensorProto.FLOAT and int(np.prod(item.dims)) >= _FROM
    if not large or item.name in graph.outputs():
        return False
    readers = graph.consumers[item.name]
    only_weight = all(graph.weight_of(n) == item.name and list(n.input).count(item.name) == 1 for n in readers)
    return only_weight and fits_float16(numpy_helper.to_array(item))
