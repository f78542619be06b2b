"""Records the precision of every operator of an INT8 or float16 graph and the rule behind it, for the manifest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import onnx

from misgnet_calibration.algorithms.improve import Attempt
from misgnet_calibration.onnx_graph import Graph, attribute
from misgnet_calibration.quantizer.per_tensor_range import PerTensor
from misgnet_calibration.quantizer.placement import OperandSite, Placement, WeightedSite, placements, weighted
from misgnet_calibration.quantizer.quantize import QuantizedGraph
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_export.pipeline.quantize import RecipeGraph
from misgnet_runtime.bundle import Int8Numbers, NodePlacement, PlacementRule, Quantization, RepairEntry, Steps

Precision = Literal["int8", "float16", "float32"]
_CONTROL = "measured by accuracy control"
_REVERTED = PlacementRule("reverted", "in INT8 it lost more F1 or pixels than allowed", _CONTROL)
_REVERTED_FREE = PlacementRule(
    "reverted at no cost", "it has no weights, so INT8 saved no MACs, and this kind of operator lost too much", _CONTROL
)
_HALF_ROUNDING = 2.0**-10  # twice the relative rounding error of a scale stored as float16
_HALF_SOURCE = "float16's range and precision, on activations of calibration and validation tiles"


def quantization_entry(file: str, recipe: Recipe, found: RecipeGraph, model: onnx.ModelProto) -> Quantization:
    """Returns the manifest's entry for the graph in ``file``; ``model`` is the float graph before any repair."""
    quantized = found.quantized
    rules, entries = placement_entries(Graph(model), recipe, quantized)
    calibrator = found.calibrator.name if found.calibrator else "none"
    return Quantization(
        graph=file, recipe=recipe.name, quantized_nodes=len(quantized.sites), weight_bits=recipe.weight_bits,
        int8_share_of_multiply_adds=quantized.int8_share, calibrator=calibrator,
        candidates={name: agreement.pixels for name, agreement in found.tried.items()},
        float32_nodes=list(quantized.float32), rules=rules, placement=entries,
        repairs=[_repair_entry(attempt) for attempt in found.repairs], calibrators=_calibrators(found),
    )  # fmt: skip


def _calibrators(found: RecipeGraph) -> dict[str, str]:
    """Returns the calibrator of each tensor if tensors have different ones; else an empty mapping."""
    chosen = found.calibrator.chosen if isinstance(found.calibrator, PerTensor) else {}
    return {name: calibrator.name for name, calibrator in chosen.items()}


def placement_entries(
    graph: Graph, recipe: Recipe, quantized: QuantizedGraph
) -> tuple[list[PlacementRule], list[NodePlacement]]:
    """Returns the rules that applied, each once, and the precision and rule of every operator of the float ``graph``.

    ``graph`` is the exported graph before any repair, so that the changes made by smoothing can be found.
    """
    int8, operands, divided = int8_numbers(quantized), operand_steps(quantized), smoothing_factors(graph, quantized)
    rules: dict[str, PlacementRule] = {}
    entries = []
    for placed in placements(graph, recipe):
        is_int8 = placed.node in int8 or placed.node in operands
        rule = _rule(placed, is_int8, quantized.float32)
        rules.setdefault(rule.name, rule)
        precision: Precision = "int8" if is_int8 else _float_type(placed.node, recipe, quantized.float32)
        entries.append(
            NodePlacement(
                node=placed.node, operator=placed.operator, precision=precision, rule=rule.name,
                multiply_adds=placed.macs, int8=int8.get(placed.node),
                divided_by=divided.get(placed.node, []), operands=operands.get(placed.node, []),
            )
        )  # fmt: skip
    return list(rules.values()), entries


def int8_numbers(quantized: QuantizedGraph) -> dict[str, Int8Numbers]:
    """Returns the quantization parameters of each INT8 operator with a weight, read from the graph's Q/DQ nodes."""
    graph = Graph(quantized.model)
    return {site.node: _numbers(graph, site, quantized.recipe) for site in weighted(quantized.sites)}


def operand_steps(quantized: QuantizedGraph) -> dict[str, list[Steps]]:
    """Returns scale and zero point of the inputs of each INT8 operator without a weight, read from its Q/DQ nodes."""
    graph = Graph(quantized.model)
    found = {}
    for site in quantized.sites:
        if isinstance(site, OperandSite):
            makers = [graph.producer.get(name) for name in graph.by_name[site.node].input]
            found[site.node] = [_steps(graph, m) for m in makers if m and m.op_type == "DequantizeLinear"]
    return found


def smoothing_factors(graph: Graph, quantized: QuantizedGraph) -> dict[str, list[float]]:
    """Returns, by LayerNorm of the float ``graph``, the factors that smoothing divided its channels by."""
    written = Graph(quantized.model)
    found = {}
    for node in graph.nodes:
        if node.op_type == "LayerNormalization" and node.input[1] in graph.constants:
            old = graph.constant(node.input[1]).astype(np.float64)
            new = written.constant(written.by_name[node.name].input[1]).astype(np.float64)
            factors = np.divide(old, new, out=np.ones_like(old), where=new != 0)
            if np.abs(factors - 1).max() > _HALF_ROUNDING:
                found[node.name] = factors.tolist()
    return found


def _numbers(graph: Graph, site: WeightedSite, recipe: Recipe) -> Int8Numbers:
    found = [graph.producer.get(name) for name in graph.by_name[site.node].input]
    activation, weight, bias = (*found, None)[:3]
    assert activation is not None and weight is not None
    written = graph.consumers[site.output] if site.output else []
    output = next((_steps(graph, node) for node in written if node.op_type == "QuantizeLinear"), None)
    return Int8Numbers(
        activation=_steps(graph, activation), weight_bits=recipe.weight_bits,
        weight_axis=attribute(weight, "axis", 1), output=output,
        quantized_bias=bias is not None and bias.op_type == "DequantizeLinear", float16_scales=recipe.float16,
    )  # fmt: skip


def _steps(graph: Graph, node: onnx.NodeProto) -> Steps:
    """Returns scale and zero point of a Q or DQ node of an activation."""
    zero = graph.constant(node.input[2])
    return Steps(float(graph.constant(node.input[1])), int(zero), bool(zero.dtype.kind == "i"))


def _rule(placed: Placement, is_int8: bool, wide: Mapping[str, str]) -> PlacementRule:
    if not is_int8:
        if placed.rule.decision == "int8":
            return _REVERTED if placed.macs else _REVERTED_FREE
        if placed.node in wide:
            return PlacementRule(f"float32: {wide[placed.node]}", wide[placed.node], _HALF_SOURCE)
    return PlacementRule(placed.rule.name, placed.rule.why, placed.rule.source)


def _float_type(node: str, recipe: Recipe, wide: Collection[str]) -> Literal["float16", "float32"]:
    return "float16" if recipe.float16 and node not in wide else "float32"


def _repair_entry(attempt: Attempt) -> RepairEntry:
    return RepairEntry(
        name=attempt.name, kept=attempt.kept, finding=attempt.finding, pixels_before=attempt.before.pixels,
        pixels_after=attempt.after.pixels, mean_before=attempt.before.mean, mean_after=attempt.after.mean,
        seconds=round(attempt.seconds, 2),
    )  # fmt: skip
