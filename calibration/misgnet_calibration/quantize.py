"""The float graph and its observed ranges in, an INT8 graph out: one function per recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from misgnet_calibration.graph import Graph
from misgnet_calibration.observers import Range
from misgnet_calibration.placement import Place, int8_share, place
from misgnet_calibration.precision import float32_nodes, to_float16
from misgnet_calibration.qdq import quantize_graph
from misgnet_calibration.recipes import Recipe
from misgnet_calibration.rules import check_numbers, check_tensorrt_rules
from misgnet_calibration.storage import compress_constants


@dataclass(frozen=True)
class QuantizedGraph:
    """An INT8 graph, and what was decided for it."""

    model: onnx.ModelProto
    recipe: Recipe
    places: tuple[Place, ...]
    int8_share: float
    float32_nodes: tuple[str, ...]


def quantize(
    model: onnx.ModelProto, recipe: Recipe, ranges: Mapping[str, Range], peaks: Mapping[str, float]
) -> QuantizedGraph:
    """Quantize the simplified float graph.

    ``ranges``: by tensor, for every activation that the recipe's places name; ``peaks``: largest magnitude
    of every tensor, which decides what a float16 recipe keeps in float32. Raises GateFailed where the graph
    breaks a rule of its engines (see ``rules``), and InputError where a range is missing.
    """
    graph = Graph(model)
    places = place(graph, recipe)
    quantized = quantize_graph(model, places, recipe, ranges)
    kept = float32_nodes(graph, peaks) if recipe.float16 else []
    if recipe.float16:
        quantized = to_float16(quantized, kept)
    quantized = compress_constants(quantized)
    _check(quantized, recipe)
    return QuantizedGraph(quantized, recipe, tuple(places), int8_share(graph, places), tuple(kept))


def _check(model: onnx.ModelProto, recipe: Recipe) -> None:
    """Every recipe's numbers; TensorRT's rules for a recipe in its form: symmetric INT8 and float biases."""
    if recipe.symmetric_activations and not recipe.quantize_bias:
        check_tensorrt_rules(model)
    else:
        check_numbers(model)
