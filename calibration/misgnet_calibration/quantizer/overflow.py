"""Finds float16 tensors that overflow on real tiles, before an engine is built, and keeps their operators in float32.

The absolute maxima of calibration tiles decide first (``float16``). This module then runs the finished graph on other
tiles, whose activations may be larger, and compares the magnitude of every float16 tensor with the limit. Comparing
outputs would not be enough: ONNX Runtime has few float16 kernels and keeps float32 values between operators, so its
outputs alone do not reveal an overflow.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import TensorProto

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.float16 import FLOAT16_LARGEST
from misgnet_calibration.quantizer.quantize import QuantizationInputs, QuantizedGraph
from misgnet_calibration.statistics.collect import per_tile, tile_absolute_maxima
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.raster.dataset import Tile

ROUNDS = 4  # attempts; an overflow that one float32 operator passes on is found in the next round


@dataclass(frozen=True)
class AbsoluteMaximum:
    """The absolute maximum of a float16 tensor, Inf or NaN if it overflows, and the tile on which it occurs."""

    tensor: str
    value: float
    tile: str

    @property
    def holds(self) -> bool:
        return self.value <= FLOAT16_LARGEST  # False for NaN

    def __str__(self) -> str:
        size = f"reaches {self.value:.3g}" if math.isfinite(self.value) else f"is {self.value:g}"
        return f"'{self.tensor}' {size} in float16 on tile {self.tile}"


@dataclass(frozen=True)
class OverflowFix:
    """A graph in which no float16 tensor overflows."""

    inputs: QuantizationInputs  # reproduce this graph
    quantized: QuantizedGraph
    largest: AbsoluteMaximum | None  # the tensor closest to the limit; None if no tensor is float16
    added: Mapping[str, str]  # operators that were changed to float32 because of overflow, with the reason

    @property
    def headroom(self) -> float:
        """The factor by which the largest magnitude is below the limit."""
        return FLOAT16_LARGEST / self.largest.value if self.largest and self.largest.value else math.inf


def fix_overflow(
    inputs: QuantizationInputs, quantized: QuantizedGraph, interface: Interface, tiles: Sequence[Tile],
    progress: Progress | None = None, *, rounds: int = ROUNDS,
) -> OverflowFix:  # fmt: skip
    """Runs ``quantized``, the graph of ``inputs``, and changes operators to float32 until no tensor overflows.

    Raises GateFailed, naming operator, tensor and tile, if a tensor still overflows after ``rounds`` rounds.
    """
    added: dict[str, str] = {}
    for left in range(rounds, -1, -1):
        graph = Graph(quantized.model)
        maxima = float16_maxima(graph, interface, tiles, progress)
        broken = made_here(graph, maxima)
        if not broken:
            break
        fresh = _involved(graph, broken, {node.name for node in inputs.model.graph.node} - quantized.float32.keys())
        if not (left and fresh):
            raise _unfixable(graph, broken[0])
        added |= fresh
        inputs = replace(inputs, float32={**inputs.float32, **fresh})
        quantized = inputs.quantize(quantized.recipe)
    return OverflowFix(inputs, quantized, max(maxima.values(), key=lambda p: p.value, default=None), added)


def float16_maxima(
    graph: Graph, interface: Interface, tiles: Sequence[Tile], progress: Progress | None = None
) -> dict[str, AbsoluteMaximum]:
    """Returns the absolute maximum of every float16 tensor over ``tiles``, in the order of the nodes; NaN stays."""
    names = [x for node in graph.nodes for x in node.output if graph.elem_type(x) == TensorProto.FLOAT16]
    maxima: dict[str, AbsoluteMaximum] = {}
    for tile, found in tile_absolute_maxima(graph.model, names, interface, tiles, per_tile(progress, len(tiles))):
        for name, value in found.items():
            before = maxima.get(name)
            if before is None or value > before.value or (math.isnan(value) and not math.isnan(before.value)):
                maxima[name] = AbsoluteMaximum(name, value, tile.ref.name)
    return maxima


def made_here(graph: Graph, maxima: Mapping[str, AbsoluteMaximum]) -> list[AbsoluteMaximum]:
    """Returns overflowing tensors whose inputs are all finite, in the order of the nodes."""
    return [
        maximum
        for maximum in maxima.values()
        if not maximum.holds
        and all(math.isfinite(maxima[x].value) for x in graph.producer[maximum.tensor].input if x in maxima)
    ]


def _involved(graph: Graph, broken: Sequence[AbsoluteMaximum], float16: Collection[str]) -> dict[str, str]:
    """Returns those of ``float16`` operators that write or read an overflowing tensor, with the reason."""
    return {
        node.name: str(maximum)
        for maximum in broken
        for node in (graph.producer[maximum.tensor], *graph.consumers[maximum.tensor])
        if node.name in float16
    }


def _unfixable(graph: Graph, maximum: AbsoluteMaximum) -> GateFailed:
    node = graph.producer[maximum.tensor]
    return GateFailed(
        f"{node.op_type} '{node.name}' overflows: {maximum}, and float32 around it does not fix that; "
        "build without FP16, or inspect that tile"
    )
