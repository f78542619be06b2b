"""Writes explicit QuantizeLinear/DequantizeLinear pairs into a graph, as a recipe wants them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from misgnet_calibration.graph import Graph
from misgnet_calibration.observers import Range
from misgnet_calibration.placement import Place
from misgnet_calibration.recipes import Recipe

_SMALLEST_SCALE = 2.0**-14  # the smallest normal float16


def quantize_graph(
    model: onnx.ModelProto, places: list[Place], recipe: Recipe, ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """A copy of ``model`` with Q/DQ at ``places``; float weights that nothing uses any more are dropped."""
    writer = _Writer(model, recipe, ranges)
    for place in places:
        writer.quantize(place)
    return writer.finish()


class _Writer:
    def __init__(self, model: onnx.ModelProto, recipe: Recipe, ranges: Mapping[str, Range]) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = Graph(self.model)
        self.recipe = recipe
        self.ranges = ranges
        self.nodes = {node.name: node for node in self.model.graph.node}
        self.pairs: dict[str, str] = {}  # tensor -> its dequantized twin
        self.weights: dict[tuple[str, int], str] = {}
        self.added: list[onnx.NodeProto] = []

    def quantize(self, place: Place) -> None:
        node = self.nodes[place.node]
        weight_scale = self._weight_scale(place)
        node.input[0] = self._activation(place.activation)
        node.input[1] = self._weight(place, weight_scale)
        if place.bias:
            node.input[2] = self._bias(place, weight_scale)
        if place.output:
            self._reroute(place.output)

    def finish(self) -> onnx.ModelProto:
        nodes = _sorted([*self.model.graph.node, *self.added], self.model.graph)
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        del self.model.graph.value_info[:]
        drop_unused(self.model)
        onnx.checker.check_model(self.model)
        return self.model

    def _activation(self, name: str) -> str:
        """Q/DQ behind ``name``, once; the dequantized tensor."""
        if name not in self.pairs:
            scale, zero = self._parameters(name)
            parameters = [self._add(f"{name}_scale", np.float32(scale)), self._add(f"{name}_zero", zero)]
            place = self._scope(name)
            self._node("QuantizeLinear", [name, *parameters], f"{name}_q", place)
            self._node("DequantizeLinear", [f"{name}_q", *parameters], f"{name}_dq", place)
            self.pairs[name] = f"{name}_dq"
        return self.pairs[name]

    def _reroute(self, name: str) -> None:
        """Let every consumer of ``name`` read the dequantized twin, so that the operator ends in INT8."""
        twin = self._activation(name)
        for node in self.graph.consumers[name]:
            for index, value in enumerate(node.input):
                if value == name:
                    node.input[index] = twin

    def _parameters(self, name: str) -> tuple[float, NDArray[np.generic]]:
        """Scale and zero point: INT8 around 0, or UINT8 from low to high with 0 exactly on a step."""
        found = self.ranges[name]
        if self.recipe.symmetric_activations:
            return self._rounded(found.magnitude / 127), np.array(0, np.int8)
        scale = max((found.high - found.low) / 255, _SMALLEST_SCALE / 256)
        return scale, np.array(np.clip(round(-found.low / scale), 0, 255), np.uint8)

    def _weight_scale(self, place: Place) -> NDArray[np.float32]:
        weight = self.graph.constant(place.weight).astype(np.float32)
        others = tuple(axis for axis in range(weight.ndim) if axis != place.weight_axis)
        limit = 2 ** (self.recipe.weight_bits - 1) - 1
        scale = np.abs(weight).max(axis=others) / limit
        return np.array([self._rounded(float(s)) for s in scale], np.float32)

    def _rounded(self, scale: float) -> float:
        """A scale that float16 holds exactly where the graph will be float16: no second rounding later."""
        scale = max(scale, _SMALLEST_SCALE if self.recipe.float16 else _SMALLEST_SCALE / 256)
        return float(np.float16(scale)) if self.recipe.float16 else scale

    def _weight(self, place: Place, scale: NDArray[np.float32]) -> str:
        key = (place.weight, place.weight_axis)
        if key not in self.weights:
            weight = self.graph.constant(place.weight).astype(np.float32)
            shape = [-1 if axis == place.weight_axis else 1 for axis in range(weight.ndim)]
            limit = 2 ** (self.recipe.weight_bits - 1) - 1
            levels = np.clip(np.rint(weight / scale.reshape(shape)), -limit, limit).astype(np.int8)
            self.weights[key] = self._constant_pair(place, place.weight, levels, scale, place.weight_axis)
        return self.weights[key]

    def _bias(self, place: Place, weight_scale: NDArray[np.float32]) -> str:
        """INT32 bias in steps of input scale times weight scale, as a convolution in INT8 adds it."""
        scale = (weight_scale * np.float32(self._parameters(place.activation)[0])).astype(np.float32)
        bias = self.graph.constant(str(place.bias)).astype(np.float64)
        levels = np.clip(np.rint(bias / scale), -(2**31), 2**31 - 1).astype(np.int32)
        return self._constant_pair(place, f"{place.bias}_{place.node}", levels, scale, 0)

    def _constant_pair(
        self, place: Place, name: str, levels: NDArray[np.generic], scale: NDArray[np.float32], axis: int
    ) -> str:
        parameters = [
            self._add(f"{name}_levels", levels),
            self._add(f"{name}_scale", scale),
            self._add(f"{name}_zero", np.zeros(scale.shape, levels.dtype)),
        ]
        self._node("DequantizeLinear", parameters, f"{name}_dq", place.node.rpartition("/")[0], axis=axis)
        return f"{name}_dq"

    def _scope(self, tensor: str) -> str:
        producer = self.graph.producer.get(tensor)
        return producer.name.rpartition("/")[0] if producer else ""

    def _add(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, operator: str, inputs: list[str], output: str, scope: str, **attributes: int) -> None:
        name = f"{scope}/{operator}_{output}"
        self.added.append(helper.make_node(operator, inputs, [output], name, **attributes))


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove initializers that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _sorted(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Topological order, stable: a node stands after all that it reads."""
    known = {value.name for value in graph.input} | {item.name for item in graph.initializer} | {""}
    waiting: dict[str, list[int]] = {}
    missing = [sum(1 for x in set(node.input) if x not in known) for node in nodes]
    for index, node in enumerate(nodes):
        for name in set(node.input) - known:
            waiting.setdefault(name, []).append(index)
    ready = [i for i, count in enumerate(missing) if count == 0]
    ordered = []
    while ready:
        node = nodes[ready.pop(0)]
        ordered.append(node)
        for name in node.output:
            for index in waiting.pop(name, []):
                missing[index] -= 1
                if missing[index] == 0:
                    ready.append(index)
    return ordered
