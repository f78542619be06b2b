"""Converts a graph to float16 types, for engines with strongly typed networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from misgnet_calibration.onnx_graph.edits import drop_unused
from misgnet_calibration.onnx_graph.graph import CONVOLUTIONS, Graph, attribute, opset_of, scope
from misgnet_calibration.onnx_graph.shapes import copied
from misgnet_calibration.quantizer.recipes import FLOAT16_SAFE_MAGNITUDE
from misgnet_runtime.errors import GateFailed

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
# Inputs that keep their type: region and scales of Resize are float32 by definition, the others accept any type.
_ANY_TYPE = {"Resize": (1, 2), "Upsample": (1,), "Cast": (0,), "CastLike": (0,), "Shape": (0,), "Size": (0,)}
FLOAT16_LARGEST = 65504.0
# Operators that stay float32 if they read dequantized values. onnxruntime 1.32 fuses such a Concat to a QLinearConcat,
# which accepts float32 scales only, and then rejects its own graph.
_FLOAT32_DEQUANTIZED = ("Concat",)
_FLOAT32_SOURCES = ("Constant", "ConstantOfShape", "EyeLike")  # their type is set by an attribute
# Operators that only move values. They keep the type of what they read: onnxsim names some of them outside of their
# module, and another type would put a Cast before and one after them.
_MOVING = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Gather", "Expand", "Tile",
    "Concat",
})  # fmt: skip
_SMALLEST = 2.0**-14  # the smallest normal float16
# Operators that square their input internally, as normalisations do for a variance: 255.9 squared is 65504.
_SQUARING = frozenset({
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
    "MeanVarianceNormalization", "LpNormalization", "ReduceL2", "ReduceSumSquare",
})  # fmt: skip
_SQUARED_FROM = 256.0
_MEANS = ("ReduceMean", "ReduceSum", "GlobalAveragePool")
_COORDINATES = "coordinates: float16 misses pixels of a map"
_SQUARES = "a mean of squares, which underflows for small activations"
_WEIGHTED = (*CONVOLUTIONS, "MatMul", "Gemm")


def float32_reasons(
    graph: Graph, absolute_maxima: Mapping[str, float], float32_scopes: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Returns the nodes that stay float32, with the reason.

    These are the nodes of ``float32_scopes``; nodes that read or write activations above 512; nodes that square
    activations of 256 or more internally; nodes that read a constant that float16 cannot represent, such as a guard of
    1e-12 against division by zero; means of squares, as in a normalisation written in single steps; GridSample and what
    computes its coordinates; and operators that ONNX does not define for float16.

    Args:
        graph: The float graph.
        absolute_maxima: By tensor.
        float32_scopes: Reasons by pattern of ``fnmatch``, which a node's module or its name matches.
    """
    constants = {name for name in graph.constants if graph.is_float(name)}
    unfit = {
        name: "a constant that float16 cannot represent" for name in constants if not fits_float16(graph.constant(name))
    }
    unfit |= {
        name: f"activations up to {maximum:.0f}"
        for name, maximum in absolute_maxima.items()
        if maximum > FLOAT16_SAFE_MAGNITUDE
    }
    fragile, scopes, opset = _fragile(graph), float32_scopes or {}, opset_of(graph.model)
    found = {}
    for node in graph.nodes:
        if (reason := _scope_reason(node, scopes)) is not None:
            found[node.name] = reason
        elif bad := [unfit[name] for name in (*node.input, *node.output) if name in unfit]:
            found[node.name] = bad[0]
        elif node.op_type in _SQUARING and (maximum := absolute_maxima.get(node.input[0], 0.0)) >= _SQUARED_FROM:
            found[node.name] = f"squares activations up to {maximum:.0f}, which overflows"
        elif node.name in fragile:
            found[node.name] = fragile[node.name]
        elif graph.is_float(node.output[0]) and not _defined_for_float16(node, opset):
            found[node.name] = f"ONNX does not define {node.op_type} for float16"
    return found


def _scope_reason(node: onnx.NodeProto, float32_scopes: Mapping[str, str]) -> str | None:
    names = (scope(node), node.name)
    return next((why for pattern, why in float32_scopes.items() if any(fnmatchcase(x, pattern) for x in names)), None)


def _fragile(graph: Graph) -> dict[str, str]:
    """Returns nodes whose results float16 makes useless although it can represent their size, with the reason."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type == "GridSample":
            found[node.name] = _COORDINATES
            _add_coordinates(graph, node.input[1], found)
        elif node.op_type in _MEANS and (square := graph.producer.get(node.input[0])) and _is_square(graph, square):
            found |= {square.name: _SQUARES, node.name: _SQUARES}
    return found


def _add_coordinates(graph: Graph, name: str, found: dict[str, str]) -> None:
    """Adds the nodes that compute ``name`` from constants and outputs of operators with weights."""
    node = graph.producer.get(name)
    if node is None or node.name in found or node.op_type in _WEIGHTED or not graph.is_float(name):
        return
    found[node.name] = _COORDINATES
    for read in node.input:
        _add_coordinates(graph, read, found)


def _is_square(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.op_type == "Mul":
        return bool(node.input[0] == node.input[1])
    return (
        node.op_type == "Pow" and node.input[1] in graph.constants and bool((graph.constant(node.input[1]) == 2).all())
    )


def _defined_for_float16(node: onnx.NodeProto, opset: int) -> bool:
    """Returns whether the schema of ``node`` allows float16 for its first output; True for unknown operators."""
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset, ""):
        return True
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    name = schema.outputs[0].type_str
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}.get(name, [name])
    return "tensor(float16)" in allowed


def fits_float16(values: NDArray[np.generic]) -> bool:
    """Returns whether float16 represents a constant: its absolute maximum is 0 or normal, or all values are exact."""
    wide = values.astype(np.float64)
    maximum = np.abs(wide).max(initial=0.0)
    if maximum == 0 or _SMALLEST <= maximum <= FLOAT16_LARGEST:
        return True
    with np.errstate(over="ignore"):
        return bool(np.isfinite(maximum) and (wide.astype(np.float16) == wide).all())


def to_float16(
    model: onnx.ModelProto, keep_float32: Iterable[str], float32_scopes: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Returns a copy of ``model`` whose nodes compute in float16, except those of ``keep_float32``.

    A QuantizeLinear has the type of its input. A DequantizeLinear has the type of its reader, and is duplicated if
    readers differ, so that no Cast separates it from the operator. Inputs and outputs keep their types. Parts of the
    graph that are float16 already are treated like the others.

    Args:
        model: The graph, with or without Q/DQ.
        keep_float32: Names of nodes.
        float32_scopes: Patterns as in :func:`float32_reasons`; they also match nodes that quantization added.

    Raises:
        GateFailed: Float16 cannot represent a constant.
    """
    return _Typer(model, set(keep_float32), float32_scopes or {}).run()


class _Typer:
    def __init__(self, model: onnx.ModelProto, keep: set[str], scopes: Mapping[str, str]) -> None:
        self.model = copied(model)
        self.keep = keep
        self.scopes = scopes
        self.graph = Graph(self.model)
        inputs = [value.name for value in self.model.graph.input]
        self.types: dict[str, int] = {x: t for x in inputs if (t := self.graph.elem_type(x)) in _FLOATS}
        self.dequantizers: dict[str, onnx.NodeProto] = {}  # by output; added to the graph when it is first read
        self.converted: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.extra: list[onnx.TensorProto] = []

    def run(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            if node.op_type == "DequantizeLinear" and node.output[0] not in self.graph.outputs():
                self.dequantizers[node.output[0]] = node
                self.types[node.output[0]] = TensorProto.FLOAT
            else:
                self._type(node, self._wanted(node))
        for output in self.model.graph.output:
            self._restore_output(output.name)
        return self._finished()

    def _finished(self) -> onnx.ModelProto:
        nodes = [copied_node(node) for node in self.nodes]  # copied before the originals are deleted
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        self.model.graph.initializer.extend(self.extra)
        del self.model.graph.value_info[:]
        drop_unused(self.model)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _wanted(self, node: onnx.NodeProto) -> int:
        """Returns the float type that ``node`` computes in."""
        if node.op_type == "QuantizeLinear":
            return self._float_type(node.input[0]) or TensorProto.FLOAT
        stays = node.name in self.keep or _scope_reason(node, self.scopes) is not None
        stays |= node.op_type in _FLOAT32_DEQUANTIZED and any(name in self.dequantizers for name in node.input)
        if stays or node.op_type in _FLOAT32_SOURCES:
            return TensorProto.FLOAT
        return self._type_moved(node) if node.op_type in _MOVING else TensorProto.FLOAT16

    def _type_moved(self, node: onnx.NodeProto) -> int:
        """Returns float32 if all float values that ``node`` moves have that type, and no constant is among them.

        Constants and dequantized values take the type of their reader.
        """
        read = [name for name in node.input if self._float_type(name) in _FLOATS]
        single = [self.types.get(name) == TensorProto.FLOAT and name not in self.dequantizers for name in read]
        return TensorProto.FLOAT if read and all(single) else TensorProto.FLOAT16

    def _type(self, node: onnx.NodeProto, wanted: int) -> None:
        skipped = _ANY_TYPE.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if self._float_type(name) in _FLOATS and (index not in skipped or name in self.dequantizers):
                node.input[index] = self._as(name, wanted, node)
        if node.op_type == "Cast" and attribute(node, "to", 0) in _FLOATS:
            next(a for a in node.attribute if a.name == "to").i = wanted
        self.nodes.append(node)
        self.types.update({name: wanted for name in node.output if name and self.graph.elem_type(name) in _FLOATS})

    def _float_type(self, name: str) -> int | None:
        if name in self.graph.constants:
            return self.graph.elem_type(name)
        return self.types.get(name)

    def _as(self, name: str, wanted: int, reader: onnx.NodeProto) -> str:
        """Returns ``name`` itself if it has the type ``wanted``, else a converted twin that all readers share."""
        if self._float_type(name) == wanted and name not in self.dequantizers:
            return name
        key = (name, wanted)
        if key not in self.converted:
            self.converted[key] = self._twin(name, wanted, reader)
        return self.converted[key]

    def _twin(self, name: str, wanted: int, reader: onnx.NodeProto) -> str:
        """Adds a converted constant, a dequantizer of the wanted type or a Cast, before its first reader."""
        twin = f"{name}_{'half' if wanted == TensorProto.FLOAT16 else 'single'}"
        if name in self.graph.constants:
            self.extra.append(_constant_as(wanted, self.graph.constants[name], twin))
        elif name in self.dequantizers:
            node = copied_node(self.dequantizers[name])
            node.name, node.output[0] = f"{node.name}_{twin[len(name) + 1 :]}", twin
            self._type(node, wanted)
            self.types[twin] = wanted
        else:
            label = f"{scope(reader)}/Cast_{twin}"
            self.nodes.append(helper.make_node("Cast", [name], [twin], label, to=wanted))
        return twin

    def _restore_output(self, name: str) -> None:
        """Casts a float output back to float32 under its own name."""
        if self.types.get(name) != TensorProto.FLOAT16:
            return
        inner = f"{name}_half"
        for node in self.nodes:
            node.input[:] = [inner if x == name else x for x in node.input]
            node.output[:] = [inner if x == name else x for x in node.output]
        self.nodes.append(helper.make_node("Cast", [inner], [name], f"/Cast_{name}", to=TensorProto.FLOAT))


def _constant_as(wanted: int, item: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(item)
    if wanted == TensorProto.FLOAT:
        return numpy_helper.from_array(values.astype(np.float32), name)
    if not fits_float16(values):
        raise GateFailed(
            f"float16 cannot represent the constant '{item.name}' (absolute maximum {np.abs(values).max():.3g}); "
            "keep the nodes that read it in float32"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def copied_node(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
