"""The float graph and its observed ranges in, an INT8 graph out: one function per recipe."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_calibration.onnx_graph.edits import with_bias
from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.checks import check_numbers, check_tensorrt_rules
from misgnet_calibration.quantizer.float16 import float32_reasons, to_float16
from misgnet_calibration.quantizer.placement import OperandSite, QuantizerSite, int8_share, quantizer_sites
from misgnet_calibration.quantizer.qdq import QuantizedWeights, quantize_graph
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.weight_storage import compress_constants
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.errors import InputError


@dataclass(frozen=True)
class QuantizedGraph:
    """An INT8 or float16 graph, and what was decided for it; ``float32``: nodes that float16 fails, with the reason."""

    model: onnx.ModelProto
    recipe: Recipe
    sites: tuple[QuantizerSite, ...]
    int8_share: float
    float32: Mapping[str, str]


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
) -> QuantizedGraph:
    """Quantize the simplified float graph.

    ``ranges``: by tensor, for every activation that the recipe's sites name; ``absolute_maxima``: largest magnitude
    of every tensor, which decides what a float16 recipe keeps in float32. By node: ``keep_float`` is not
    quantized; ``quantized_weights``, INT8 of the weight's shape, are written in place of the nearest; ``bias``,
    float32 (C,), is added to the operator's constant bias (see ``edits.with_bias``); ``float32``: kept in float32 by
    a float16 recipe, beside what ``absolute_maxima`` decide, with the reason. A node that stays float takes neither
    quantized weights nor bias, as those repair what quantizing it would do.

    Raises GateFailed where the graph breaks a rule of its engines (see ``rules``), and InputError where a
    range is missing, a name is no node of the graph, or quantized weights do not fit theirs.
    """
    graph = Graph(model)
    _check_names(graph, {*keep_float, *(quantized_weights or {}), *(bias or {}), *(float32 or {})})
    kept_float = frozenset(keep_float)
    sites = [p for p in quantizer_sites(graph, recipe) if p.node not in kept_float]
    if corrections := {p.node: bias[p.node] for p in sites if bias and p.node in bias}:
        graph = Graph(with_bias(model, corrections))
        # a changed bias may have a new name
        sites = [p for p in quantizer_sites(graph, recipe) if p.node not in kept_float]
    quantized = quantize_graph(graph.model, sites, recipe, ranges, quantized_weights)
    kept = {**float32_reasons(graph, absolute_maxima), **(float32 or {})} if recipe.float16 else {}
    if recipe.float16:
        quantized = to_float16(quantized, kept)
    quantized = compress_constants(quantized)
    _check(quantized, recipe, sites)
    return QuantizedGraph(quantized, recipe, tuple(sites), int8_share(graph, sites), kept)


@dataclass(frozen=True, kw_only=True)
class QuantizationInputs:
    """All that :func:`quantize` takes, so that it can be done again.

    A node that is reverted to float later goes into ``keep_float``; its quantized weight and bias are then unused.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    absolute_maxima: Mapping[str, float]
    keep_float: frozenset[str] = frozenset()
    quantized_weights: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    bias: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    float32: Mapping[str, str] = field(default_factory=dict)

    def quantize(self, recipe: Recipe) -> QuantizedGraph:
        return quantize(
            self.model, recipe, self.ranges, self.absolute_maxima,
            keep_float=self.keep_float, quantized_weights=self.quantized_weights, bias=self.bias, float32=self.float32,
        )  # fmt: skip


def _check_names(graph: Graph, names: Collection[str]) -> None:
    unknown = sorted(name for name in names if name not in graph.by_name)
    if unknown:
        raise InputError(f"{len(unknown)} names are no nodes of the graph, as '{unknown[0]}'; name its nodes")


def _check(model: onnx.ModelProto, recipe: Recipe, sites: Iterable[QuantizerSite]) -> None:
    """Every recipe's numbers; TensorRT's rules for a recipe in its form: symmetric INT8 and float biases."""
    if recipe.symmetric_activations and not recipe.quantize_bias:
        check_tensorrt_rules(model, {p.node for p in sites if isinstance(p, OperandSite)})
    else:
        check_numbers(model)
