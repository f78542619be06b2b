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
from misgnet_calibration.quantizer.placement import AnyPlace, OperandPlace, int8_share, place
from misgnet_calibration.quantizer.qdq import Levels, quantize_graph
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.weight_storage import compress_constants
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.errors import InputError


@dataclass(frozen=True)
class QuantizedGraph:
    """An INT8 or float16 graph, and what was decided for it; ``float32``: nodes that float16 fails, with the reason."""

    model: onnx.ModelProto
    recipe: Recipe
    places: tuple[AnyPlace, ...]
    int8_share: float
    float32: Mapping[str, str]


def quantize(
    model: onnx.ModelProto,
    recipe: Recipe,
    ranges: Mapping[str, Range],
    peaks: Mapping[str, float],
    *,
    keep_float: Collection[str] = (),
    levels: Levels | None = None,
    bias: Mapping[str, NDArray[np.float32]] | None = None,
    float32: Mapping[str, str] | None = None,
) -> QuantizedGraph:
    """Quantize the simplified float graph.

    ``ranges``: by tensor, for every activation that the recipe's places name; ``peaks``: largest magnitude
    of every tensor, which decides what a float16 recipe keeps in float32. By node: ``keep_float`` is not
    quantized; ``levels``, INT8 of the weight's shape, are written in place of the nearest; ``bias``, float32
    (C,), is added to the operator's constant bias (see ``edits.with_bias``); ``float32``: kept in float32 by a
    float16 recipe, beside what ``peaks`` decide, with the reason. A node that stays float takes neither levels nor
    bias, as those repair what quantizing it would do.

    Raises GateFailed where the graph breaks a rule of its engines (see ``rules``), and InputError where a
    range is missing, a name is no node of the graph, or levels do not fit their weight.
    """
    graph = Graph(model)
    _check_names(graph, {*keep_float, *(levels or {}), *(bias or {}), *(float32 or {})})
    kept_float = frozenset(keep_float)
    places = [p for p in place(graph, recipe) if p.node not in kept_float]
    if corrections := {p.node: bias[p.node] for p in places if bias and p.node in bias}:
        graph = Graph(with_bias(model, corrections))
        places = [p for p in place(graph, recipe) if p.node not in kept_float]  # a changed bias may have a new name
    quantized = quantize_graph(graph.model, places, recipe, ranges, levels)
    kept = {**float32_reasons(graph, peaks), **(float32 or {})} if recipe.float16 else {}
    if recipe.float16:
        quantized = to_float16(quantized, kept)
    quantized = compress_constants(quantized)
    _check(quantized, recipe, places)
    return QuantizedGraph(quantized, recipe, tuple(places), int8_share(graph, places), kept)


@dataclass(frozen=True)
class Inputs:
    """All that :func:`quantize` takes, so that it can be done again.

    A node that is reverted to float later goes into ``keep_float``; its levels and correction are then unused.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    peaks: Mapping[str, float]
    keep_float: frozenset[str] = frozenset()
    levels: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    bias: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    float32: Mapping[str, str] = field(default_factory=dict)

    def quantize(self, recipe: Recipe) -> QuantizedGraph:
        return quantize(
            self.model, recipe, self.ranges, self.peaks,
            keep_float=self.keep_float, levels=self.levels, bias=self.bias, float32=self.float32,
        )  # fmt: skip


def _check_names(graph: Graph, names: Collection[str]) -> None:
    unknown = sorted(name for name in names if name not in graph.by_name)
    if unknown:
        raise InputError(f"{len(unknown)} names are no nodes of the graph, as '{unknown[0]}'; name its nodes")


def _check(model: onnx.ModelProto, recipe: Recipe, places: Iterable[AnyPlace]) -> None:
    """Every recipe's numbers; TensorRT's rules for a recipe in its form: symmetric INT8 and float biases."""
    if recipe.symmetric_activations and not recipe.quantize_bias:
        check_tensorrt_rules(model, {p.node for p in places if isinstance(p, OperandPlace)})
    else:
        check_numbers(model)
