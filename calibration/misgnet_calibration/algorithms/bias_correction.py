"""Bias correction: the mean error that quantization leaves in each output channel is taken off its bias.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
4.2 and appendix D: the empirical form, in graph order. Every operator is corrected with all before it corrected:
its mean error then holds what their norms, ReLUs and softmaxes made of the noise, and no shift is corrected twice,
as it would be if one pass of both graphs decided all biases. The price is a pass for each rank of the graph,
which is why few tiles are used; a mean over thousands of positions needs no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_calibration.onnx_graph.edits import bias_of, with_bias
from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.placement import QuantizerSite, WeightedSite, weighted
from misgnet_calibration.quantizer.qdq import QuantizedWeights, quantize_graph
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.statistics.collect import TileDone, per_tile
from misgnet_calibration.statistics.intermediate import spread_tiles, tile_activations
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.raster.dataset import Tile, TileSet

TILES = 16  # each has hundreds of positions, is kept in memory, and is run once for every rank
_TINY = 1e-300
Means = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class BiasCorrection:
    """What is to be added to the biases, float32 (C,) by node, and the operators that have none to add to."""

    corrections: Mapping[str, NDArray[np.float32]]
    without_bias: tuple[str, ...]


def correct_bias(
    model: onnx.ModelProto, interface: Interface, tiles: TileSet, sites: Sequence[QuantizerSite], recipe: Recipe,
    *, ranges: Mapping[str, Range], quantized_weights: QuantizedWeights | None = None, progress: Progress | None = None,
) -> BiasCorrection:  # fmt: skip
    """Corrections for the operators of ``sites`` that have a weight and a constant bias, in the order of the graph.

    The quantized graph is that of ``recipe`` before float16 is written into it: what half precision shifts is
    not INT8's. At most TILES of ``tiles`` are used, evenly spread, and kept; so memory does not grow with their
    number. Raises InputError that names the tile where an output is NaN or Inf, or where there are fewer than
    two tiles.
    """
    graph = Graph(model)
    few = list(spread_tiles(tiles, TILES).tiles())
    nodes = [graph.by_name[p.node] for p in weighted(sites)]
    ranked = ranks(graph, [node for node in nodes if bias_of(graph, node)])
    tile_done = per_tile(progress, (1 + len(ranked)) * len(few))
    wanted = channel_means(model, interface, few, [node for rank in ranked for node in rank], tile_done)
    corrections: dict[str, NDArray[np.float32]] = {}
    for rank in ranked:
        corrected = with_bias(model, corrections)
        leading = _renamed(corrected, _before(graph, rank, sites))
        quantized = quantize_graph(corrected, leading, recipe, ranges, quantized_weights)
        found = channel_means(quantized, interface, few, rank, tile_done)
        corrections |= {name: shrunken_mean(wanted[name] - means) for name, means in found.items()}
    return BiasCorrection(corrections, tuple(n.name for n in nodes if n.name not in corrections))


def shrunken_mean(shifts: NDArray[np.float64]) -> NDArray[np.float32]:
    """The mean (C,) of ``shifts`` (N, C) over N tiles, nearer to 0 the less sure it is.

    Tiles differ: a mean that is no larger than its own standard error says nothing about the next tile and is
    dropped, a sure one stays as it is (the positive part of James and Stein's estimator, channel by channel).
    A single tile has no standard error, and corrects nothing.
    """
    if len(shifts) < 2:
        return np.zeros(shifts.shape[1], np.float32)
    mean = shifts.mean(axis=0)
    error = shifts.var(axis=0, ddof=1) / len(shifts)
    sure = 1 - error / np.maximum(np.square(mean), _TINY)
    return (mean * np.maximum(sure, 0)).astype(np.float32)


def ranks(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> list[list[onnx.NodeProto]]:
    """``nodes`` by how many others, one behind the other, lie before them: none depends on one of its own rank."""
    chosen = {node.name for node in nodes}
    depth: dict[str, int] = {}  # by tensor: how many chosen nodes lie on the longest way to it
    found: dict[int, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        before = max((depth.get(name, 0) for name in node.input), default=0)
        if node.name in chosen:
            found.setdefault(before, []).append(node)
        depth.update(dict.fromkeys(node.output, before + (node.name in chosen)))
    return [found[rank] for rank in sorted(found)]


def channel_means(
    model: onnx.ModelProto, interface: Interface, tiles: Sequence[Tile], nodes: Sequence[onnx.NodeProto],
    tile_done: TileDone | None = None,
) -> Means:  # fmt: skip
    """By node, the mean of each output channel on each tile (N, C)."""
    means: dict[str, list[NDArray[np.float64]]] = {node.name: [] for node in nodes}
    for values in tile_activations(model, interface, tiles, [node.output[0] for node in nodes], tile_done):
        for node in nodes:
            output = values[node.output[0]]
            channel = 1 if node.op_type == "Conv" else output.ndim - 1
            others = tuple(i for i in range(output.ndim) if i != channel)
            means[node.name].append(output.mean(axis=others, dtype=np.float64))
    return {name: np.stack(found) for name, found in means.items()}


def _before(graph: Graph, rank: Sequence[onnx.NodeProto], sites: Sequence[QuantizerSite]) -> list[QuantizerSite]:
    """The sites that the nodes of ``rank`` depend on, and these nodes' own."""
    needed = graph.needed_for(node.output[0] for node in rank)
    return [p for p in sites if not needed.isdisjoint(graph.by_name[p.node].output)]


def _renamed(model: onnx.ModelProto, sites: Sequence[QuantizerSite]) -> list[QuantizerSite]:
    """``sites`` in a model with corrected biases, where one that was shared has a name of its own."""
    nodes = Graph(model).by_name
    return [
        replace(p, bias=str(nodes[p.node].input[2])) if isinstance(p, WeightedSite) and p.bias else p for p in sites
    ]
