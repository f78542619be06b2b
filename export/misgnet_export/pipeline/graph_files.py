"""Writes the graphs of a bundle, and records how INT8 and float16 graphs were quantized."""

from __future__ import annotations

from dataclasses import replace

import onnx

from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_export.evidence import record_of
from misgnet_export.graph.half import with_half_features
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.graph_metadata import write_graph
from misgnet_export.pipeline.quantization_record import quantization_entry
from misgnet_export.pipeline.quantize import RecipeGraph
from misgnet_export.pipeline.result import FLOAT_GRAPH, FloatGraph, GraphFile, WrittenGraph, lowest
from misgnet_runtime.log import current


def write_float(context: BuildContext, model: onnx.ModelProto) -> WrittenGraph:
    return _write(context, "float", FLOAT_GRAPH, "float32", model)


def write_quantized(context: BuildContext, graph: FloatGraph, recipe: Recipe, found: RecipeGraph) -> WrittenGraph:
    """Writes a quantized graph; ``graph`` is the float graph before any repair, to compare operators with."""
    model = found.quantized.model
    if context.request.split:
        model = with_half_features(model, context.interface)
    path = f"graphs/{lowest(recipe.precision)}_{recipe.name}.onnx"
    written = _write(context, recipe.name, path, recipe.precision, model)
    if recipe.int8 and not found.quantized.sites:
        why = ", because accuracy control reverted all of them" if found.control else ""
        current().warning(f"the graph for {recipe.name} has no INT8 operator{why}: its engines compute in float")
    entry = quantization_entry(path, recipe, found, graph.model)
    control = record_of(found.control, found.control_speed) if found.control else None
    return replace(written, file=replace(written.file, quantization=entry, control=control))


def _write(context: BuildContext, name: str, file: str, precision: str, model: onnx.ModelProto) -> WrittenGraph:
    size = write_graph(context, file, model)
    return WrittenGraph(GraphFile(name=name, file=file, precision=precision, size=size), model)
