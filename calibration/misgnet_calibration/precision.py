"""Writes float16 types into a graph, for engines whose networks are strongly typed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from misgnet_calibration.graph import Graph, scope
from misgnet_calibration.qdq import drop_unused
from misgnet_calibration.recipes import FLOAT16_SAFE_MAGNITUDE, FLOAT32_SCOPES
from misgnet_runtime.errors import GateFailed

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_ALWAYS_FLOAT32 = {"Resize": (1, 2)}  # region and scales are float32 by definition of the operator
_COMPRESS_FROM = 4096  # values; smaller constants are not worth a Cast


def float32_nodes(graph: Graph, peaks: Mapping[str, float]) -> list[str]:
    """Nodes that stay float32: the guidance, and whatever reads or writes activations above 512."""
    return [
        node.name
        for node in graph.nodes
        if scope(node).startswith(FLOAT32_SCOPES)
        or any(peaks.get(name, 0.0) > FLOAT16_SAFE_MAGNITUDE for name in (*node.input, *node.output))
    ]


def to_float16(model: onnx.ModelProto, keep_float32: list[str]) -> onnx.ModelProto:
    """A copy of ``model`` whose nodes compute in float16, except those of ``keep_float32``.

    Q/DQ nodes follow their place. Inputs and outputs keep their types. Raises GateFailed where a constant
    does not fit float16.
    """
    return _Typer(model, set(keep_float32)).run()


def compress_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store large float32 constants as float16 with a Cast behind; engines fold the Cast when they load."""
    model = _copy(model)
    casts = []
    for index, item in enumerate(list(model.graph.initializer)):
        values = numpy_helper.to_array(item)
        if item.data_type != TensorProto.FLOAT or values.size < _COMPRESS_FROM or np.abs(values).max() > 65504:
            continue
        half = numpy_helper.from_array(values.astype(np.float16), f"{item.name}_half")
        casts.append(helper.make_node("Cast", [half.name], [item.name], f"/Cast_{item.name}", to=TensorProto.FLOAT))
        model.graph.initializer[index].CopyFrom(half)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


class _Typer:
    def __init__(self, model: onnx.ModelProto, keep: set[str]) -> None:
        self.model = _copy(model)
        self.keep = keep
        graph = Graph(self.model)
        self.is_float = graph.is_float
        self.constants = graph.constants
        self.types = {v.name: TensorProto.FLOAT for v in self.model.graph.input if graph.is_float(v.name)}
        self.converted: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.extra: list[onnx.TensorProto] = []

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            self._type(node)
        for output in self.model.graph.output:
            self._restore_output(output.name)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        self.model.graph.initializer.extend(self.extra)
        del self.model.graph.value_info[:]
        drop_unused(self.model)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _type(self, node: onnx.NodeProto) -> None:
        wanted = TensorProto.FLOAT if self._stays_float32(node) else TensorProto.FLOAT16
        skipped = _ALWAYS_FLOAT32.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if index not in skipped and self._float_type(name) in _FLOATS:
                node.input[index] = self._as(name, wanted, node)
        if node.op_type == "Cast" and node.attribute[0].i in _FLOATS:
            node.attribute[0].i = wanted
        self.nodes.append(node)
        self.types.update({name: wanted for name in node.output if name and self.is_float(name)})

    def _stays_float32(self, node: onnx.NodeProto) -> bool:
        """Q/DQ nodes belong to the nodes that read them, and those were named before they were inserted."""
        return node.name in self.keep or scope(node).startswith(FLOAT32_SCOPES)

    def _float_type(self, name: str) -> int | None:
        if name in self.constants:
            return self.constants[name].data_type
        return self.types.get(name)

    def _as(self, name: str, wanted: int, node: onnx.NodeProto) -> str:
        """``name`` with the type ``wanted``: itself, a converted constant, or a Cast that all readers share."""
        if self._float_type(name) == wanted:
            return name
        key = (name, wanted)
        if key not in self.converted:
            twin = f"{name}_{'half' if wanted == TensorProto.FLOAT16 else 'single'}"
            if name in self.constants:
                self.extra.append(_half_constant(self.constants[name], twin))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [twin], f"{scope(node)}/Cast_{twin}", to=wanted))
            self.converted[key] = twin
        return self.converted[key]

    def _restore_output(self, name: str) -> None:
        """A float output stays float32 under its own name."""
        if self.types.get(name) != TensorProto.FLOAT16:
            return
        inner = f"{name}_half"
        for node in self.nodes:
            node.input[:] = [inner if x == name else x for x in node.input]
            node.output[:] = [inner if x == name else x for x in node.output]
        self.nodes.append(helper.make_node("Cast", [inner], [name], f"/Cast_{name}", to=TensorProto.FLOAT))


def _half_constant(item: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(item)
    if np.abs(values).max(initial=0) > 65504:
        raise GateFailed(f"the constant '{item.name}' reaches {np.abs(values).max():.3g}, which float16 cannot hold")
    return numpy_helper.from_array(values.astype(np.float16), name)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
