"""What the manifest says of an INT8 graph and of how it came about."""

from __future__ import annotations

import onnx

from misgnet_calibration.graph import Graph
from misgnet_calibration.recipes import Recipe
from misgnet_calibration.repair import Attempt
from misgnet_export.int8 import Int8Graph
from misgnet_export.placement import placement_entries
from misgnet_runtime.manifest import Quantization, RepairEntry


def quantization_entry(file: str, recipe: Recipe, found: Int8Graph, model: onnx.ModelProto) -> Quantization:
    """What the manifest says of the INT8 graph in ``file``; ``model`` is the float graph before any repair."""
    quantized = found.quantized
    rules, entries = placement_entries(Graph(model), recipe, quantized, found.inputs.peaks)
    return Quantization(
        file, recipe.name, len(quantized.places), recipe.weight_bits, quantized.int8_share, found.calibrator.name,
        {name: agreement.pixels for name, agreement in found.tried.items()}, list(quantized.float32_nodes), rules,
        entries, [_repair_entry(attempt) for attempt in found.repairs],
    )  # fmt: skip


def _repair_entry(attempt: Attempt) -> RepairEntry:
    return RepairEntry(
        attempt.name, attempt.kept, attempt.finding, attempt.before.pixels, attempt.after.pixels,
        attempt.before.mean, attempt.after.mean, round(attempt.seconds, 2),
    )  # fmt: skip
