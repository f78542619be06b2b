"""Rounds the features of an INT8 encoder to float16 values, so that storing them in float16 loses nothing."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from misgnet_calibration.onnx_graph import Graph, copied, put_in_order, scope
from misgnet_export.graph.cut import find_cut
from misgnet_runtime.bundle import Interface

# Veltkamp's splitting (Dekker, Numerische Mathematik 18, 1971): x * f - (x * f - x) keeps 11 of the 24 bits of a
# float32 x, as many as float16 has. OpenVINO 2026 would remove an equivalent pair of Casts.
_FACTOR = np.array(2**13 + 1, np.float32)
_FACTOR_NAME = "half_factor"


def with_half_features(model: onnx.ModelProto, interface: Interface) -> onnx.ModelProto:
    """Returns a copy of ``model`` whose head reads float32 features rounded to 11 bits.

    The later stages of the encoder read the unrounded features. The rounding matters because an INT8 head turns the
    differences of float16 rounding into whole quantization steps. Features that are float16 already stay as they are,
    and values below float16's normal range keep all their bits.

    Raises:
        GateFailed: The graph cannot be cut into encoder and head.
    """
    graph = Graph(copied(model))
    added: list[onnx.NodeProto] = []
    for found in find_cut(graph, interface).maps:
        if graph.elem_type(found.name) == TensorProto.FLOAT:
            added += _rounding(found.name, scope(graph.producer[found.name]))
            graph.by_name[found.reader].input[0] = added[-1].output[0]
    put_in_order(graph.model, [*graph.nodes, *added])
    if added:
        graph.model.graph.initializer.append(numpy_helper.from_array(_FACTOR, _FACTOR_NAME))
    onnx.checker.check_model(graph.model)
    return graph.model


def _rounding(name: str, within: str) -> list[onnx.NodeProto]:
    large, difference, half = f"{name}_large", f"{name}_difference", f"{name}_half"
    return [
        helper.make_node("Mul", [name, _FACTOR_NAME], [large], f"{within}/Mul_{large}"),
        helper.make_node("Sub", [large, name], [difference], f"{within}/Sub_{difference}"),
        helper.make_node("Sub", [large, difference], [half], f"{within}/Sub_{half}"),
    ]
