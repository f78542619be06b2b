"""Checks that a finished INT8 graph is valid before an engine opens it."""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from misgnet_calibration.onnx_graph.graph import Graph, attribute, output_axis
from misgnet_runtime.errors import GateFailed

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_WEIGHTED = ("Conv", "MatMul", "Gemm")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def check_numbers(model: onnx.ModelProto) -> None:
    """Raises GateFailed if a float constant contains NaN, or a scale is not a positive finite constant."""
    graph = Graph(model)
    for name, item in graph.constants.items():
        if item.data_type in _FLOATS and np.isnan(graph.constant(name)).any():
            readers = ", ".join(f"'{node.name}'" for node in graph.consumers[name])
            raise GateFailed(f"the constant '{name}' of {readers or 'no node'} contains NaN")
    for node in graph.nodes:
        if node.op_type in _QDQ:
            _scale(graph, node)


def check_tensorrt_rules(
    model: onnx.ModelProto, unweighted: Collection[str] = (), outputs: Collection[str] = ()
) -> None:
    """Raises GateFailed, naming the node, if a graph breaks a rule of explicit quantization in TensorRT.

    The rules: INT8 is symmetric, with zero points 0; every QuantizeLinear is read by DequantizeLinear and nothing else;
    every Q/DQ output is used; an operator dequantizes its activation and its weight to one type; weights are quantized
    per output channel; biases are not quantized; only Cast reads uint8 images. Sources: TensorRT's developer guide,
    "Working with quantized types", and graphs that TensorRT for RTX 1.7 rejected.

    Args:
        model: The graph.
        unweighted: Nodes that were placed without a weight. They may dequantize any of their inputs, since TensorRT
            computes in INT8 if it can and otherwise on the dequantized values. Every other reader of a
            DequantizeLinear must be an operator with a weight, or Q/DQ was inserted against the placement.
        outputs: Tensors that a quantized convolution, or a ReLU after it, writes in INT8. Operators of any kind may
            dequantize them, since no reader may need another form of such a tensor.
    """
    check_numbers(model)
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type in _QDQ:
            _check_zero_point(graph, node)
        if node.op_type == "QuantizeLinear":
            _check_quantizer(graph, node)
            if node.input[0] in outputs:
                _check_int8_output(graph, node)
        elif node.op_type == "DequantizeLinear":
            _check_dequantizer(graph, node, unweighted, outputs)
        elif node.op_type not in ("Cast", "Shape"):
            _check_no_uint8(graph, node)


def _scale(graph: Graph, node: onnx.NodeProto) -> NDArray[np.float64]:
    """Returns the scale of a Q or DQ node."""
    if node.input[1] not in graph.constants:
        _refuse(node, "has a scale that is not a constant")
    scale = graph.constant(node.input[1]).astype(np.float64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        _refuse(node, f"has scales from {scale.min()} to {scale.max()}; they must be positive and finite")
    return scale


def _check_zero_point(graph: Graph, node: onnx.NodeProto) -> None:
    name = node.input[2] if len(node.input) > 2 else ""
    if graph.elem_type(name) != TensorProto.INT8:
        _refuse(node, f"must have INT8 zero points, but has {_name(graph.elem_type(name))}")
    if name not in graph.constants or graph.constant(name).any():
        _refuse(node, "has zero points other than 0; TensorRT quantizes symmetrically")


def _check_quantizer(graph: Graph, node: onnx.NodeProto) -> None:
    readers = graph.consumers[node.output[0]]
    others = [reader.name for reader in readers if reader.op_type != "DequantizeLinear"]
    if not readers or others or node.output[0] in graph.outputs():
        _refuse(node, f"must be read by DequantizeLinear only, but is read by {others or 'no node'}")
    if _scale(graph, node).ndim:
        _refuse(node, "has several scales; an activation has one")
    tensor, scale = graph.elem_type(node.input[0]), graph.elem_type(node.input[1])
    if tensor != scale:
        _refuse(node, f"reads type {_name(tensor)} with a scale of type {_name(scale)}; they must be equal")


def _check_int8_output(graph: Graph, node: onnx.NodeProto) -> None:
    """Checks a quantizer of an output: a quantized convolution makes it, and every reader reads it in INT8."""
    maker = graph.producer.get(node.input[0])
    conv = graph.producer.get(maker.input[0]) if maker is not None and maker.op_type == "Relu" else maker
    weight = graph.producer.get(conv.input[1]) if conv is not None and conv.op_type == "Conv" else None
    if maker is None or conv is None or weight is None or weight.op_type != "DequantizeLinear":
        _refuse(node, f"quantizes '{node.input[0]}' as an output, which no quantized convolution writes")
    for name in dict.fromkeys((conv.output[0], maker.output[0])):
        if others := [reader.name for reader in graph.consumers[name] if reader not in (maker, node)]:
            _refuse(node, f"quantizes the output of '{conv.name}', which is also read unquantized by {others}")


def _check_dequantizer(
    graph: Graph, node: onnx.NodeProto, unweighted: Collection[str], outputs: Collection[str]
) -> None:
    readers = graph.consumers[node.output[0]]
    if not readers or node.output[0] in graph.outputs():
        _refuse(node, "must be read by operators of the graph, but has no readers or is an output")
    producer = graph.producer.get(node.input[0])
    if producer is not None and producer.op_type != "QuantizeLinear":
        _refuse(node, f"reads '{producer.name}', which is not a QuantizeLinear")
    is_output = producer is not None and producer.input[0] in outputs
    for reader in readers:
        if is_output and not _is_quantized(graph, reader):
            continue
        if reader.name not in unweighted:
            _check_reader(graph, node, reader)
        elif len(types := _dequantized_types(graph, reader)) > 1:
            _refuse(reader, f"dequantizes to several types: {', '.join(map(_name, sorted(types)))}")


def _is_quantized(graph: Graph, reader: onnx.NodeProto) -> bool:
    """Returns whether ``reader`` has a weight and dequantizes it."""
    maker = graph.producer.get(reader.input[1]) if reader.op_type in _WEIGHTED else None
    return maker is not None and maker.op_type == "DequantizeLinear"


def _dequantized_types(graph: Graph, reader: onnx.NodeProto) -> set[int]:
    made = [name for name in reader.input if name in graph.producer]
    return {graph.elem_type(name) for name in made if graph.producer[name].op_type == "DequantizeLinear"}


def _check_reader(graph: Graph, node: onnx.NodeProto, reader: onnx.NodeProto) -> None:
    """Checks a quantized operator: both inputs dequantized to one type, the weight (input 1) per output channel."""
    if reader.op_type not in _WEIGHTED:
        _refuse(node, f"is read by {reader.op_type} '{reader.name}', which must stay float")
    makers = [graph.producer.get(name) for name in reader.input]
    dequantized = [maker is not None and maker.op_type == "DequantizeLinear" for maker in makers]
    if dequantized[:2] != [True, True] or any(dequantized[2:]):
        _refuse(reader, f"must dequantize its activation and its weight but no bias; dequantized: {dequantized}")
    types = {graph.elem_type(name) for name in reader.input if name}
    if len(types) > 1:
        _refuse(reader, f"reads several types: {', '.join(map(_name, sorted(types)))}")
    if reader.input[1] == node.output[0]:
        _check_weight(graph, node, reader)


def _check_weight(graph: Graph, node: onnx.NodeProto, reader: onnx.NodeProto) -> None:
    if node.input[0] not in graph.constants or graph.elem_type(node.input[0]) != TensorProto.INT8:
        _refuse(reader, "has a quantized weight that is not an INT8 constant")
    axis, found = output_axis(reader), attribute(node, "axis", 1)
    wanted, shape = (graph.shape(node.input[0])[axis],), _scale(graph, node).shape
    if found != axis or shape != wanted:
        required = f"scales {wanted} along axis {axis}, the output channels of '{reader.name}'"
        _refuse(node, f"must have {required}, but has {shape} along axis {found}")


def _check_no_uint8(graph: Graph, node: onnx.NodeProto) -> None:
    if any(graph.elem_type(name) == TensorProto.UINT8 for name in node.input if name):
        _refuse(node, "reads uint8, which in TensorRT only Cast may read; cast the images first")


def _refuse(node: onnx.NodeProto, why: str) -> NoReturn:
    raise GateFailed(f"{node.op_type} '{node.name}' {why}")


def _name(elem_type: int) -> str:
    return str(TensorProto.DataType.Name(elem_type))
