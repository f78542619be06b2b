"""Quantizes a float graph according to a recipe, given the ranges of its activations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_calibration.onnx_graph.edits import with_bias
from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.checks import check_numbers, check_tensorrt_rules
from misgnet_calibration.quantizer.float16 import float32_reasons, to_float16
from misgnet_calibration.quantizer.placement import OperandSite, QuantizerSite, int8_share, quantizer_sites, weighted
from misgnet_calibration.quantizer.qdq import QuantizedWeights, quantize_graph
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.weight_storage import compress_constants
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural


@dataclass(frozen=True)
class QuantizedGraph:
    """An INT8 or float16 graph and the decisions behind it."""

    model: onnx.ModelProto
    recipe: Recipe
    sites: tuple[QuantizerSite, ...]
    int8_share: float  # share of the MACs, 0 to 1
    float32: Mapping[str, str]  # nodes that a float16 recipe keeps in float32, with the reason


def quantize(
    model: onnx.ModelProto,
    recipe: Recipe,
    ranges: Mapping[str, Range],
    absolute_maxima: Mapping[str, float],
    *,
    keep_float: Collection[str] = (),
    quantized_weights: QuantizedWeights | None = None,
    bias: Mapping[str, NDArray[np.float32]] | None = None,
    float32: Mapping[str, str] | None = None,
    float32_scopes: Mapping[str, str] | None = None,
) -> QuantizedGraph:
    """Quantizes the simplified float graph.

    Args:
        model: The float graph.
        recipe: Number formats and placement rules.
        ranges: By tensor, for every activation of the recipe's sites.
        absolute_maxima: By tensor; they decide which nodes a float16 recipe keeps in float32.
        keep_float: Nodes that are not quantized. Their entries in ``quantized_weights`` and ``bias`` are ignored,
            since these repair the effects of quantization. If no operator is left to quantize, all of them are.
        quantized_weights: By node, INT8 values of the weight's shape that replace the nearest ones.
        bias: By node, quantized or not, float32 (C,) that is added to its constant bias (see ``edits.with_bias``).
        float32: Further nodes that a float16 recipe keeps in float32, with the reason.
        float32_scopes: Patterns for modules and names of such nodes, with the reason (see ``float16``).

    Raises:
        GateFailed: The graph breaks a rule of its engines (see ``checks``).
        InputError: A range is missing, a name is not a node of the graph, or quantized weights do not fit the weight.
    """
    graph = Graph(model)
    _check_names(graph, {*keep_float, *(quantized_weights or {}), *(bias or {}), *(float32 or {})})
    kept_float = frozenset(keep_float)
    sites = [p for p in quantizer_sites(graph, recipe) if p.node not in kept_float]
    if corrections := {name: value for name, value in (bias or {}).items() if sites and name not in kept_float}:
        graph = Graph(with_bias(model, corrections))
        # a changed bias may have a new name
        sites = [p for p in quantizer_sites(graph, recipe) if p.node not in kept_float]
    quantized = quantize_graph(graph.model, sites, recipe, ranges, quantized_weights)
    kept: dict[str, str] = {}
    if recipe.float16:
        kept = {**float32_reasons(graph, absolute_maxima, float32_scopes), **(float32 or {})}
        quantized = to_float16(quantized, kept, float32_scopes)
    quantized = compress_constants(quantized)
    _check(quantized, recipe, sites)
    return QuantizedGraph(quantized, recipe, tuple(sites), int8_share(graph, sites), kept)


@dataclass(frozen=True, kw_only=True)
class QuantizationInputs:
    """The arguments of :func:`quantize`, kept so that a graph can be quantized again with changes.

    To revert a node to float later, add it to ``keep_float``; its quantized weight and bias are then ignored.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    absolute_maxima: Mapping[str, float]
    keep_float: frozenset[str] = frozenset()
    quantized_weights: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    bias: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    float32: Mapping[str, str] = field(default_factory=dict)
    # Patterns of ``fnmatch`` for an operator's module or name, with the reason: parts that must not be float16.
    float32_scopes: Mapping[str, str] = field(default_factory=dict)

    def quantize(self, recipe: Recipe) -> QuantizedGraph:
        return quantize(
            self.model, recipe, self.ranges, self.absolute_maxima,
            keep_float=self.keep_float, quantized_weights=self.quantized_weights, bias=self.bias, float32=self.float32,
            float32_scopes=self.float32_scopes,
        )  # fmt: skip


def _check_names(graph: Graph, names: Collection[str]) -> None:
    unknown = sorted(name for name in names if name not in graph.by_name)
    if unknown:
        raise InputError(
            f"{plural(len(unknown), 'name')} not found among the nodes of the graph, such as '{unknown[0]}'; "
            "use names of its nodes"
        )


def _check(model: onnx.ModelProto, recipe: Recipe, sites: Collection[QuantizerSite]) -> None:
    """Checks the constants, and TensorRT's rules for recipes of its form: symmetric INT8 and float biases."""
    if recipe.symmetric_activations and not recipe.quantize_bias:
        unweighted = {p.node for p in sites if isinstance(p, OperandSite)}
        check_tensorrt_rules(model, unweighted, {p.output for p in weighted(sites) if p.output})
    else:
        check_numbers(model)
