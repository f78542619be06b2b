"""Bias correction: subtracts the mean quantization error of each output channel from its bias.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
4.2 and appendix D: the empirical form, in graph order. Each operator is corrected after all operators before it. Its
mean error then includes how their norms, ReLUs and softmaxes transform the noise, and no shift is corrected twice, as
would happen if one pass of both graphs decided all biases. This takes one pass per rank of the graph, so few tiles are
used; they are enough for a mean over thousands of positions.
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

TILES = 16  # each has hundreds of positions, is held in memory, and is run once per rank
_TINY = 1e-300
Means = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class BiasCorrection:
    """Corrections of biases."""

    corrections: Mapping[str, NDArray[np.float32]]  # values to add to the bias, float32 (C,), by node
    without_bias: tuple[str, ...]  # weighted operators without a constant bias, which cannot be corrected


def correct_bias(
    model: onnx.ModelProto, interface: Interface, tiles: TileSet, sites: Sequence[QuantizerSite], recipe: Recipe,
    *, ranges: Mapping[str, Range], quantized_weights: QuantizedWeights | None = None, progress: Progress | None = None,
) -> BiasCorrection:  # fmt: skip
    """Returns corrections for the operators of ``sites`` that have a weight and a constant bias, in graph order.

    The quantized graph is that of ``recipe`` without float16, since shifts of half precision are not errors of INT8.
    At most TILES of ``tiles`` are used, evenly spread, and held in memory; memory use does not grow with the number of
    tiles. Raises InputError, naming the tile, if an output is NaN or Inf; also if there are fewer than two tiles.
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
    """Returns the mean (C,) of ``shifts`` (N, C) over N tiles, shrunk towards 0 by its uncertainty.

    A mean that is not larger than its own standard error does not generalize to other tiles and becomes 0; a certain
    one stays unchanged (the positive part of James and Stein's estimator, per channel). A single tile has no standard
    error and gives 0.
    """
    if len(shifts) < 2:
        return np.zeros(shifts.shape[1], np.float32)
    mean = shifts.mean(axis=0)
    error = shifts.var(axis=0, ddof=1) / len(shifts)
    sure = 1 - error / np.maximum(np.square(mean), _TINY)
    return (mean * np.maximum(sure, 0)).astype(np.float32)


def ranks(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> list[list[onnx.NodeProto]]:
    """Groups ``nodes`` by the length of the longest chain of other ``nodes`` before them.

    Nodes of the same rank do not depend on one another.
    """
    chosen = {node.name for node in nodes}
    depth: dict[str, int] = {}  # by tensor: number of chosen nodes on the longest path to it
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
    """Returns, by node, the mean of each output channel on each tile (N, C)."""
    means: dict[str, list[NDArray[np.float64]]] = {node.name: [] for node in nodes}
    for values in tile_activations(model, interface, tiles, [node.output[0] for node in nodes], tile_done):
        for node in nodes:
            output = values[node.output[0]]
            channel = 1 if node.op_type == "Conv" else output.ndim - 1
            others = tuple(i for i in range(output.ndim) if i != channel)
            means[node.name].append(output.mean(axis=others, dtype=np.float64))
    return {name: np.stack(found) for name, found in means.items()}


def _before(graph: Graph, rank: Sequence[onnx.NodeProto], sites: Sequence[QuantizerSite]) -> list[QuantizerSite]:
    """Returns the sites that the nodes of ``rank`` depend on, and these nodes' own sites."""
    needed = graph.needed_for(node.output[0] for node in rank)
    return [p for p in sites if not needed.isdisjoint(graph.by_name[p.node].output)]


def _renamed(model: onnx.ModelProto, sites: Sequence[QuantizerSite]) -> list[QuantizerSite]:
    """Returns ``sites`` with the names of the corrected biases; a shared bias gets one name per node."""
    nodes = Graph(model).by_name
    return [
        replace(p, bias=str(nodes[p.node].input[2])) if isinstance(p, WeightedSite) and p.bias else p for p in sites
    ]
