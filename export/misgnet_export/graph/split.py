"""Splits a graph into an encoder, which processes one date, and a head, which compares the features of two dates.

Nodes keep their names; constants, Q/DQ and float16 types are those of the whole graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.utils import Extractor

from misgnet_calibration.onnx_graph import Graph, copied, put_in_order
from misgnet_export.graph.cut import Cut, find_cut, not_cut
from misgnet_runtime.bundle import Interface, TensorEntry, head_inputs


@dataclass(frozen=True)
class SplitGraph:
    """An encoder and a head that together compute the whole graph."""

    encoder: onnx.ModelProto
    head: onnx.ModelProto
    features: list[TensorEntry]  # float32 (B, C, h, w): outputs of the encoder for one date; the head reads both dates


def split_graph(model: onnx.ModelProto, interface: Interface) -> SplitGraph:
    """Cuts ``model``, in float, INT8 or float16, which has the inputs and outputs of ``interface``.

    The encoder preprocesses its image as the whole graph preprocesses the first date.

    Raises:
        GateFailed: The graph does not join the dates exactly once, or the head needs more than the features.
    """
    graph = Graph(model)
    cut = find_cut(graph, interface)
    shapes = [[-1, *graph.shape(found.name)[1:]] for found in cut.maps]
    features = [TensorEntry(f"feature{i}", "float32", shape, "NCHW") for i, shape in enumerate(shapes, 1)]
    return SplitGraph(_encoder(model, interface, cut, features), _head(model, interface, cut, features), features)


def _encoder(model: onnx.ModelProto, interface: Interface, cut: Cut, features: list[TensorEntry]) -> onnx.ModelProto:
    """Builds the encoder: the first date replaces the join of both, and a Cast follows each map."""
    graph = Graph(copied(model))
    date, (image,) = interface.inputs()[0].name, interface.encoder_inputs()
    for node in graph.consumers[date]:
        node.input[:] = [image.name if name == date else name for name in node.input]
    join = graph.by_name[cut.join]
    join.CopyFrom(helper.make_node("Identity", join.input[:1], join.output, join.name))
    graph.model.graph.node.extend(
        helper.make_node("Cast", [found.name], [feature.name], f"/Cast_{feature.name}", to=TensorProto.FLOAT)
        for found, feature in zip(cut.maps, features, strict=True)
    )
    return _part(graph.model, [image], features)


def _head(model: onnx.ModelProto, interface: Interface, cut: Cut, features: list[TensorEntry]) -> onnx.ModelProto:
    """Builds the head: the features of both dates, joined and cast, replace each map."""
    graph = Graph(copied(model))
    inputs, count = head_inputs(features), len(features)
    added = []
    for found, feature, *dates in zip(cut.maps, features, inputs[:count], inputs[count:], strict=True):
        joined, cast = f"{feature.name}_of_both", f"{feature.name}_of_both_cast"
        added += [
            helper.make_node("Concat", [date.name for date in dates], [joined], f"/Concat_{feature.name}", axis=0),
            helper.make_node("Cast", [joined], [cast], f"/Cast_{feature.name}", to=graph.elem_type(found.name)),
        ]
        graph.by_name[found.reader].input[0] = cast
    put_in_order(graph.model, [*added, *graph.nodes])
    return _part(graph.model, inputs, interface.outputs())


def _part(model: onnx.ModelProto, inputs: list[TensorEntry], outputs: list[TensorEntry]) -> onnx.ModelProto:
    """Extracts the part of ``model`` between ``inputs`` and ``outputs``."""
    del model.graph.value_info[:]
    model.graph.value_info.extend(map(_value_info, (*inputs, *outputs)))
    part = Extractor(model).extract_model([entry.name for entry in inputs], [entry.name for entry in outputs])
    del part.graph.value_info[:]
    if missing := _missing(part.graph):
        raise not_cut(f"the part computed from {', '.join(e.name for e in inputs)} also needs {', '.join(missing)}")
    onnx.checker.check_model(part, full_check=True)
    return part


def _missing(graph: onnx.GraphProto) -> list[str]:
    """Returns names that nodes read but that nothing in the graph provides."""
    provided = {item.name for item in (*graph.input, *graph.initializer)}
    provided.update(name for node in graph.node for name in node.output)
    needed = dict.fromkeys(name for node in graph.node for name in node.input if name)  # "": an omitted input
    return [name for name in needed if name not in provided]


def _value_info(entry: TensorEntry) -> onnx.ValueInfoProto:
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(entry.dtype))
    return helper.make_tensor_value_info(entry.name, elem_type, ["batch", *entry.shape[1:]])
