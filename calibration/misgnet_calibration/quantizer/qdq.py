"""Inserts explicit QuantizeLinear/DequantizeLinear pairs into a graph according to a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from misgnet_calibration.onnx_graph.edits import drop_unused, put_in_order
from misgnet_calibration.onnx_graph.graph import Graph, scope
from misgnet_calibration.onnx_graph.shapes import copied
from misgnet_calibration.quantizer.placement import OperandSite, QuantizerSite, WeightedSite, activations
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.scales import (
    activation_parameters,
    check_quantized_weight,
    quantize_bias,
    quantize_weight,
    weight_scale,
)
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural

QuantizedWeights = Mapping[str, NDArray[np.int8]]


def quantize_graph(
    model: onnx.ModelProto,
    sites: Sequence[QuantizerSite],
    recipe: Recipe,
    ranges: Mapping[str, Range],
    quantized_weights: QuantizedWeights | None = None,
) -> onnx.ModelProto:
    """Returns a copy of ``model`` with Q/DQ at ``sites``; drops float weights that are no longer used.

    Args:
        model: The float graph.
        sites: The quantizer sites.
        recipe: Number formats.
        ranges: By tensor, for every activation of ``sites``.
        quantized_weights: By node, quantized values of the weight's shape that replace the nearest ones.

    Raises:
        InputError: A range is missing, or quantized weights do not fit their weight.
    """
    missing = [name for name in activations(sites) if name not in ranges]
    if missing:
        raise InputError(
            f"{plural(len(missing), 'activation')} without a range, such as '{missing[0]}'; calibrate them first"
        )
    writer = _Writer(model, recipe, ranges, quantized_weights or {})
    for site in sites:
        if isinstance(site, OperandSite):
            writer.quantize_operands(site)
        else:
            writer.quantize(site)
    return writer.finish()


def scale_at(graph: Graph, site: WeightedSite, recipe: Recipe, ranges: Mapping[str, Range]) -> NDArray[np.float32]:
    """Returns the scales (C,) of the site's weight, one per output channel."""
    weight = graph.constant(site.weight).astype(np.float32)
    bias = graph.constant(site.bias) if site.bias else None
    step = activation_parameters(ranges[site.activation], recipe)[0]
    return weight_scale(weight, site.weight_axis, recipe, bias, step)


class _Writer:
    def __init__(
        self, model: onnx.ModelProto, recipe: Recipe, ranges: Mapping[str, Range], learned: QuantizedWeights
    ) -> None:
        self.model = copied(model)
        self.graph = Graph(self.model)
        self.recipe = recipe
        self.ranges = ranges
        self.learned = learned
        self.pairs: dict[str, str] = {}  # dequantized twin by tensor
        self.weights: dict[tuple[str, bytes, bytes], str] = {}  # dequantized twin by weight, scales and learned values
        self.added: list[onnx.NodeProto] = []

    def quantize(self, site: WeightedSite) -> None:
        node = self.graph.by_name[site.node]
        scale = scale_at(self.graph, site, self.recipe, self.ranges)
        node.input[0] = self._activation(site.activation)
        node.input[1] = self._weight(site, scale)
        if site.bias:
            step = self._parameters(site.activation)[0]
            steps = (scale * np.float32(step)).astype(np.float32)
            quantized = quantize_bias(self.graph.constant(site.bias), steps)
            node.input[2] = self._constant(site, f"{site.bias}_{site.node}", quantized, steps, 0)
        if site.output:
            self._reroute(site.output)

    def quantize_operands(self, site: OperandSite) -> None:
        node = self.graph.by_name[site.node]
        node.input[:] = [self._activation(name) if name in site.tensors else name for name in node.input]

    def finish(self) -> onnx.ModelProto:
        put_in_order(self.model, [*self.model.graph.node, *self.added])
        del self.model.graph.value_info[:]
        drop_unused(self.model)
        onnx.checker.check_model(self.model)
        return self.model

    def _activation(self, name: str) -> str:
        """Adds Q/DQ after ``name`` unless it has them already; returns the dequantized tensor."""
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
        """Makes every consumer of ``name`` read its dequantized twin, so that the operator's output is INT8."""
        twin = self._activation(name)
        for node in self.graph.consumers[name]:
            node.input[:] = [twin if value == name else value for value in node.input]

    def _parameters(self, name: str) -> tuple[float, NDArray[np.generic]]:
        return activation_parameters(self.ranges[name], self.recipe)

    def _weight(self, site: WeightedSite, scale: NDArray[np.float32]) -> str:
        """Adds INT8 values and DQ of a weight, once for all sites that share its scales and quantized values."""
        learned = self.learned.get(site.node)
        key = (site.weight, scale.tobytes(), b"" if learned is None else learned.tobytes())
        if key not in self.weights:
            copies = sum(name == site.weight for name, *_ in self.weights)
            name = f"{site.weight}_{copies}" if copies else site.weight
            quantized = self._quantized(site, scale, learned)
            self.weights[key] = self._constant(site, name, quantized, scale, site.weight_axis)
        return self.weights[key]

    def _quantized(
        self, site: WeightedSite, scale: NDArray[np.float32], learned: NDArray[np.int8] | None
    ) -> NDArray[np.int8]:
        weight = self.graph.constant(site.weight).astype(np.float32)
        if learned is None:
            return quantize_weight(weight, scale, site.weight_axis, self.recipe)
        try:
            check_quantized_weight(learned, weight, scale, site.weight_axis, self.recipe)
        except ValueError as error:
            raise InputError(f"'{site.node}' was given {error}; learn weights for this graph and recipe") from error
        return learned

    def _constant(
        self, site: WeightedSite, name: str, quantized: NDArray[np.generic], scale: NDArray[np.float32], axis: int
    ) -> str:
        parameters = [
            self._add(f"{name}_levels", quantized),
            self._add(f"{name}_scale", scale),
            self._add(f"{name}_zero", np.zeros(scale.shape, quantized.dtype)),
        ]
        self._node("DequantizeLinear", parameters, f"{name}_dq", scope(self.graph.by_name[site.node]), axis)
        return f"{name}_dq"

    def _add(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, operator: str, inputs: list[str], output: str, within: str, axis: int | None = None) -> None:
        name = f"{within}/{operator}_{output}"
        self.added.append(helper.make_node(operator, inputs, [output], name, axis=axis))  # axis=None is left out
