"""Writes explicit QuantizeLinear/DequantizeLinear pairs into a graph, as a recipe wants them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from misgnet_calibration.graph import Graph, scope
from misgnet_calibration.levels import activation_parameters, bias_levels, weight_levels, weight_scale
from misgnet_calibration.observers import Range
from misgnet_calibration.placement import Place, activations
from misgnet_calibration.recipes import Recipe
from misgnet_calibration.shapes import copied
from misgnet_runtime.errors import InputError


def quantize_graph(
    model: onnx.ModelProto, places: list[Place], recipe: Recipe, ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """A copy of ``model`` with Q/DQ at ``places``; float weights that nothing uses any more are dropped.

    Raises InputError where ``ranges`` lacks an activation of the places.
    """
    missing = [name for name in activations(places) if name not in ranges]
    if missing:
        raise InputError(f"{len(missing)} activations have no range, as '{missing[0]}'; observe them first")
    writer = _Writer(model, recipe, ranges)
    for place in places:
        writer.quantize(place)
    return writer.finish()


class _Writer:
    def __init__(self, model: onnx.ModelProto, recipe: Recipe, ranges: Mapping[str, Range]) -> None:
        self.model = copied(model)
        self.graph = Graph(self.model)
        self.recipe = recipe
        self.ranges = ranges
        self.pairs: dict[str, str] = {}  # tensor -> its dequantized twin
        self.weights: dict[tuple[str, bytes], str] = {}  # weight and its scales -> its dequantized twin
        self.added: list[onnx.NodeProto] = []

    def quantize(self, place: Place) -> None:
        node = self.graph.by_name[place.node]
        weight = self.graph.constant(place.weight).astype(np.float32)
        bias = self.graph.constant(place.bias) if place.bias else None
        step = self._parameters(place.activation)[0]
        scale = weight_scale(weight, place.weight_axis, self.recipe, bias, step)
        node.input[0] = self._activation(place.activation)
        node.input[1] = self._weight(place, weight, scale)
        if bias is not None:
            steps = (scale * np.float32(step)).astype(np.float32)
            name = f"{place.bias}_{place.node}"
            node.input[2] = self._constant(place, name, bias_levels(bias, steps), steps, 0)
        if place.output:
            self._reroute(place.output)

    def finish(self) -> onnx.ModelProto:
        nodes = in_order([*self.model.graph.node, *self.added])
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
            producer = self.graph.producer.get(name)
            within = scope(producer) if producer else ""
            self._node("QuantizeLinear", [name, *parameters], f"{name}_q", within)
            self._node("DequantizeLinear", [f"{name}_q", *parameters], f"{name}_dq", within)
            self.pairs[name] = f"{name}_dq"
        return self.pairs[name]

    def _reroute(self, name: str) -> None:
        """Let every consumer of ``name`` read the dequantized twin, so that the operator ends in INT8."""
        twin = self._activation(name)
        for node in self.graph.consumers[name]:
            node.input[:] = [twin if value == name else value for value in node.input]

    def _parameters(self, name: str) -> tuple[float, NDArray[np.generic]]:
        return activation_parameters(self.ranges[name], self.recipe)

    def _weight(self, place: Place, weight: NDArray[np.float32], scale: NDArray[np.float32]) -> str:
        """INT8 and DQ of a weight, once for all places that share it in the same steps."""
        key = (place.weight, scale.tobytes())
        if key not in self.weights:
            copies = sum(name == place.weight for name, _ in self.weights)
            name = f"{place.weight}_{copies}" if copies else place.weight
            levels = weight_levels(weight, scale, place.weight_axis, self.recipe)
            self.weights[key] = self._constant(place, name, levels, scale, place.weight_axis)
        return self.weights[key]

    def _constant(
        self, place: Place, name: str, levels: NDArray[np.generic], scale: NDArray[np.float32], axis: int
    ) -> str:
        parameters = [
            self._add(f"{name}_levels", levels),
            self._add(f"{name}_scale", scale),
            self._add(f"{name}_zero", np.zeros(scale.shape, levels.dtype)),
        ]
        self._node("DequantizeLinear", parameters, f"{name}_dq", scope(self.graph.by_name[place.node]), axis)
        return f"{name}_dq"

    def _add(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, operator: str, inputs: list[str], output: str, within: str, axis: int | None = None) -> None:
        name = f"{within}/{operator}_{output}"
        self.added.append(helper.make_node(operator, inputs, [output], name, axis=axis))  # None: left out


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove initializers that no node reads and that are no outputs."""
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def in_order(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Topological order, stable: a node moves only where it must, to just before its first reader."""
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    ordered: dict[int, onnx.NodeProto] = {}

    def emit(index: int) -> None:
        if index not in ordered:
            for name in nodes[index].input:
                if name in producer:
                    emit(producer[name])
            ordered[index] = nodes[index]

    for index in range(len(nodes)):
        emit(index)
    return list(ordered.values())
