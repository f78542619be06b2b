"""Writes explicit QuantizeLinear/DequantizeLinear pairs into a graph, as a recipe wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from misgnet_calibration.onnx_graph.edits import drop_unused, put_in_order
from misgnet_calibration.onnx_graph.graph import Graph, scope
from misgnet_calibration.onnx_graph.shapes import copied
from misgnet_calibration.quantizer.placement import AnyPlace, OperandPlace, Place, activations
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.scales import (
    activation_parameters,
    bias_levels,
    check_levels,
    weight_levels,
    weight_scale,
)
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.errors import InputError

Levels = Mapping[str, NDArray[np.int8]]


def quantize_graph(
    model: onnx.ModelProto,
    places: Sequence[AnyPlace],
    recipe: Recipe,
    ranges: Mapping[str, Range],
    levels: Levels | None = None,
) -> onnx.ModelProto:
    """A copy of ``model`` with Q/DQ at ``places``; float weights that nothing uses any more are dropped.

    ``levels``: the integers to write in place of the nearest ones, of the weight's shape, by the place's node.
    Raises InputError where ``ranges`` lacks an activation of the places, or levels do not fit their weight.
    """
    missing = [name for name in activations(places) if name not in ranges]
    if missing:
        raise InputError(f"{len(missing)} activations have no range, as '{missing[0]}'; observe them first")
    writer = _Writer(model, recipe, ranges, levels or {})
    for place in places:
        if isinstance(place, OperandPlace):
            writer.quantize_operands(place)
        else:
            writer.quantize(place)
    return writer.finish()


def scale_at(graph: Graph, place: Place, recipe: Recipe, ranges: Mapping[str, Range]) -> NDArray[np.float32]:
    """The steps (C,) that the place's weight is counted in, one for each output channel."""
    weight = graph.constant(place.weight).astype(np.float32)
    bias = graph.constant(place.bias) if place.bias else None
    step = activation_parameters(ranges[place.activation], recipe)[0]
    return weight_scale(weight, place.weight_axis, recipe, bias, step)


class _Writer:
    def __init__(self, model: onnx.ModelProto, recipe: Recipe, ranges: Mapping[str, Range], learned: Levels) -> None:
        self.model = copied(model)
        self.graph = Graph(self.model)
        self.recipe = recipe
        self.ranges = ranges
        self.learned = learned
        self.pairs: dict[str, str] = {}  # tensor -> its dequantized twin
        self.weights: dict[tuple[str, bytes, bytes], str] = {}  # weight, scales, learned levels -> dequantized twin
        self.added: list[onnx.NodeProto] = []

    def quantize(self, place: Place) -> None:
        node = self.graph.by_name[place.node]
        scale = scale_at(self.graph, place, self.recipe, self.ranges)
        node.input[0] = self._activation(place.activation)
        node.input[1] = self._weight(place, scale)
        if place.bias:
            step = self._parameters(place.activation)[0]
            steps = (scale * np.float32(step)).astype(np.float32)
            levels = bias_levels(self.graph.constant(place.bias), steps)
            node.input[2] = self._constant(place, f"{place.bias}_{place.node}", levels, steps, 0)
        if place.output:
            self._reroute(place.output)

    def quantize_operands(self, place: OperandPlace) -> None:
        node = self.graph.by_name[place.node]
        node.input[:] = [self._activation(name) if name in place.tensors else name for name in node.input]

    def finish(self) -> onnx.ModelProto:
        put_in_order(self.model, [*self.model.graph.node, *self.added])
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

    def _weight(self, place: Place, scale: NDArray[np.float32]) -> str:
        """INT8 and DQ of a weight, once for all places that share it in the same steps and levels."""
        learned = self.learned.get(place.node)
        key = (place.weight, scale.tobytes(), b"" if learned is None else learned.tobytes())
        if key not in self.weights:
            copies = sum(name == place.weight for name, *_ in self.weights)
            name = f"{place.weight}_{copies}" if copies else place.weight
            levels = self._levels(place, scale, learned)
            self.weights[key] = self._constant(place, name, levels, scale, place.weight_axis)
        return self.weights[key]

    def _levels(self, place: Place, scale: NDArray[np.float32], learned: NDArray[np.int8] | None) -> NDArray[np.int8]:
        weight = self.graph.constant(place.weight).astype(np.float32)
        if learned is None:
            return weight_levels(weight, scale, place.weight_axis, self.recipe)
        try:
            check_levels(learned, weight, scale, place.weight_axis, self.recipe)
        except ValueError as error:
            raise InputError(f"'{place.node}' was given {error}; learn them for this graph and recipe") from error
        return learned

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
