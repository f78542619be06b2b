"""A whole graph in two: what each date goes through alone, and what compares the features of two dates.

Nodes keep their names, and constants, Q/DQ and float16 types are the whole graph's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.utils import Extractor

from misgnet_calibration.onnx_graph import Graph, copied
from misgnet_export.graph.cut import Cut, find_cut, not_cut
from misgnet_runtime.bundle import Interface, TensorEntry, head_inputs


@dataclass(frozen=True)
class SplitGraph:
    """``features``: what ``encoder`` answers for one date, and ``head`` reads of both, float32 (B, C, h, w)."""

    encoder: onnx.ModelProto
    head: onnx.ModelProto
    features: list[TensorEntry]


def split_graph(model: onnx.ModelProto, interface: Interface) -> SplitGraph:
    """Cut ``model``, float, INT8 or float16, which has ``interface``'s inputs and outputs.

    What lies in front of the place where the dates are joined is the first date's. Raises GateFailed where the
    graph does not join the dates once, or the head needs more of them than the features.
    """
    graph = Graph(model)
    cut = find_cut(graph, interface)
    shapes = [[-1, *graph.shape(found.name)[1:]] for found in cut.maps]
    features = [TensorEntry(f"feature{i}", "float32", shape, "NCHW") for i, shape in enumerate(shapes, 1)]
    return SplitGraph(_encoder(model, interface, cut, features), _head(model, interface, cut, features), features)


def _encoder(model: onnx.ModelProto, interface: Interface, cut: Cut, features: list[TensorEntry]) -> onnx.ModelProto:
    """The first date in the place of both, and a Cast behind each map."""
    graph = Graph(copied(model))
    date, (image,) = interface.inputs()[0].name, interface.encoder_inputs()
    for node in graph.consumers[date]:
        node.input[:] = [image.name if name == date else name for name in node.input]
    join = graph.by_name[cut.join]
    _become(join, "Identity", join.input[0])
    graph.model.graph.node.extend(
        helper.make_node("Cast", [found.name], [feature.name], f"/Cast_{feature.name}", to=TensorProto.FLOAT)
        for found, feature in zip(cut.maps, features, strict=True)
    )
    return _part(graph.model, [image], features)


def _head(model: onnx.ModelProto, interface: Interface, cut: Cut, features: list[TensorEntry]) -> onnx.ModelProto:
    """A Cast of each feature in the place of the Slice that took it from both dates' map."""
    graph = Graph(copied(model))
    inputs = head_inputs(features)
    sliced = [(found.slices[date], graph.elem_type(found.name)) for date in (0, 1) for found in cut.maps]
    for (name, elem_type), entry in zip(sliced, inputs, strict=True):
        _become(graph.by_name[name], "Cast", entry.name, to=elem_type)
    return _part(graph.model, inputs, interface.outputs())


def _become(node: onnx.NodeProto, operator: str, read: str, to: int | None = None) -> None:
    """Make ``node`` another operator on the tensor ``read``, with the name and the output that it has."""
    node.CopyFrom(helper.make_node(operator, [read], node.output, node.name, to=to))  # None: left out


def _part(model: onnx.ModelProto, inputs: list[TensorEntry], outputs: list[TensorEntry]) -> onnx.ModelProto:
    """What of ``model`` lies between ``inputs`` and ``outputs``."""
    del model.graph.value_info[:]
    model.graph.value_info.extend(map(_value_info, (*inputs, *outputs)))
    part = Extractor(model).extract_model([entry.name for entry in inputs], [entry.name for entry in outputs])
    del part.graph.value_info[:]
    if missing := _missing(part.graph):
        raise not_cut(f"what is computed from {', '.join(e.name for e in inputs)} also needs {', '.join(missing)}")
    onnx.checker.check_model(part, full_check=True)
    return part


def _missing(graph: onnx.GraphProto) -> list[str]:
    """What nodes read and nothing in the graph provides."""
    provided = {item.name for item in (*graph.input, *graph.initializer)}
    provided.update(name for node in graph.node for name in node.output)
    needed = dict.fromkeys(name for node in graph.node for name in node.input if name)  # without a name: left out
    return [name for name in needed if name not in provided]


def _value_info(entry: TensorEntry) -> onnx.ValueInfoProto:
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(entry.dtype))
    return helper.make_tensor_value_info(entry.name, elem_type, ["batch", *entry.shape[1:]])
