"""Overflow of float16 tensors, found on real tiles before an engine is built, and mended in float32.

What activations reach on calibration tiles decides first (``precision``). This runs the finished graph on other
tiles, where they may reach more. Every float16 tensor's magnitude is compared with the limit: ONNX Runtime has few
float16 kernels and keeps float32 between its operators, so its answers alone would not show an overflow.
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

ROUNDS = 4  # how often a graph is typed again; what one float32 operator passes on, the next round finds


@dataclass(frozen=True)
class AbsoluteMaximum:
    """The largest magnitude of a float16 tensor, Inf or NaN where it overflows, and the tile that reaches it."""

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
    """A graph whose float16 tensors all hold; ``largest``: the one that comes closest to the limit, where any is.

    ``added``: operators that went to float32 for it, with the reason; ``inputs`` quantize to this graph again.
    """

    inputs: QuantizationInputs
    quantized: QuantizedGraph
    largest: AbsoluteMaximum | None
    added: Mapping[str, str]

    @property
    def headroom(self) -> float:
        """How many times larger the largest magnitude could be."""
        return FLOAT16_LARGEST / self.largest.value if self.largest and self.largest.value else math.inf


def fix_overflow(
    inputs: QuantizationInputs, quantized: QuantizedGraph, interface: Interface, tiles: Sequence[Tile],
    progress: Progress | None = None,
) -> OverflowFix:  # fmt: skip
    """Run ``quantized``, which ``inputs`` make, on ``tiles``; operators that overflow go to float32, until none does.

    Raises GateFailed that names operator, tensor and tile where ``ROUNDS`` rounds do not mend it.
    """
    added: dict[str, str] = {}
    for left in range(ROUNDS, -1, -1):
        graph = Graph(quantized.model)
        maxima = float16_maxima(graph, interface, tiles, progress)
        broken = made_here(graph, maxima)
        if not broken:
            break
        fresh = _blamed(graph, broken, {node.name for node in inputs.model.graph.node} - quantized.float32.keys())
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
    """Tensors that do not hold although all that they are computed from is finite, in the order of the nodes."""
    return [
        maximum
        for maximum in maxima.values()
        if not maximum.holds
        and all(math.isfinite(maxima[x].value) for x in graph.producer[maximum.tensor].input if x in maxima)
    ]


def _blamed(graph: Graph, broken: Sequence[AbsoluteMaximum], float16: Collection[str]) -> dict[str, str]:
    """Of ``float16``, the operators that write a broken tensor or read it, with the reason."""
    return {
        node.name: str(maximum)
        for maximum in broken
        for node in (graph.producer[maximum.tensor], *graph.consumers[maximum.tensor])
        if node.name in float16
    }


def _unfixable(graph: Graph, maximum: AbsoluteMaximum) -> GateFailed:
    node = graph.producer[maximum.tensor]
    return GateFailed(
        f"{node.op_type} '{node.name}' overflows: {maximum}, and float32 around it does not mend that; "
        "build without FP16, or look at that tile"
    )
