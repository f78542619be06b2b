"""Bias correction: subtracts the mean quantization error of each output channel from its bias.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2:
the error of an operator's weight and input has a mean, E[W_q x_q] - E[W x], that does not average out over positions.
Here it is measured on float activations, for all operators in one pass. So each correction belongs to its own operator:
no shift is corrected twice, and an operator that is reverted to float only loses its own correction.

How norms, ReLUs and softmaxes turn the remaining noise into a shift is corrected once, at the last operator: it makes
the logit of a pixel, and a shift of all logits moves F1 although hardly any pixel is far off. This takes a second pass,
through the quantized graph. (The paper's empirical form corrects each operator after all before it, which takes as many
passes as the graph has ranks; neither form lost less F1 on all of our tiles.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_calibration.onnx_graph.edits import bias_of, with_bias
from misgnet_calibration.onnx_graph.graph import Graph, attribute, interpolates
from misgnet_calibration.quantizer.conv_rows import as_matrix, sampled_rows
from misgnet_calibration.quantizer.placement import QuantizerSite, WeightedSite, weighted
from misgnet_calibration.quantizer.qdq import QuantizedWeights, quantize_graph, scale_at
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.scales import along, fake_quantize, quantize_weight
from misgnet_calibration.statistics.collect import per_tile
from misgnet_calibration.statistics.intermediate import spread_tiles, tile_activations
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.raster.dataset import TileSet

TILES = 16  # maximum number of tiles
ROWS = 256  # positions of each operator and tile
_UNDECIDED = 3.0  # logits of pixels that count, 0.05 to 0.95 in probability; the others keep their mask anyway
_TINY = 1e-300
# Operators between the logit and the output of the graph.
_PRESENTING = frozenset({
    "Resize", "Upsample", "Sigmoid", "Greater", "Less", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
    "Flatten", "Identity", "Slice", "Gather", "Not", "Sub", "Concat", "Softmax", "DepthToSpace", "Pad",
})  # fmt: skip


@dataclass(frozen=True)
class BiasCorrection:
    """Corrections of biases."""

    corrections: Mapping[str, NDArray[np.float32]]  # values to add to the bias, float32 (C,), by node
    without_bias: tuple[str, ...]  # weighted operators without a constant bias, which cannot be corrected


def correct_bias(
    model: onnx.ModelProto, interface: Interface, tiles: TileSet, sites: Sequence[QuantizerSite], recipe: Recipe,
    *, ranges: Mapping[str, Range], quantized_weights: QuantizedWeights | None = None, progress: Progress | None = None,
) -> BiasCorrection:  # fmt: skip
    """Returns corrections for the operators of ``sites`` that have a weight and a constant bias, and for the last one.

    The last operator (:func:`logit_operator`) is corrected even if it is not among ``sites``. The quantized graph is
    that of ``recipe`` without float16, since shifts of half precision are not errors of INT8. At most TILES of
    ``tiles`` are used, evenly spread. Raises InputError, naming the tile, if an activation is NaN or Inf; also if there
    are fewer than two tiles.
    """
    graph = Graph(model)
    few, last = spread_tiles(tiles, TILES), logit_operator(graph)
    tile_done = per_tile(progress, len(few) * (2 if last else 1))
    operators = [_Operator.of(graph, p, recipe, ranges, quantized_weights or {}) for p in weighted(sites)]
    corrected = [operator for operator in operators if bias_of(graph, operator.node)]
    shifts: dict[str, list[NDArray[np.float64]]] = {operator.site.node: [] for operator in corrected}
    exact: list[NDArray[np.float32]] = []
    names = [*(operator.site.activation for operator in corrected), *(last.output if last else ())]
    for seed, values in enumerate(tile_activations(model, interface, few.tiles(), names, tile_done) if names else ()):
        for operator in corrected:
            shifts[operator.site.node].append(operator.shift(values[operator.site.activation], seed))
        exact += [values[last.output[0]]] if last else []
    corrections = {name: -shrunken_mean(np.stack(found)) for name, found in shifts.items()}
    if last is not None:
        changed = with_bias(model, corrections)
        quantized = quantize_graph(changed, _renamed(changed, sites), recipe, ranges, quantized_weights)
        found = tile_activations(quantized, interface, few.tiles(), last.output, tile_done)
        shift = logit_shift(exact, [values[last.output[0]] for values in found])
        corrections[last.name] = corrections.get(last.name, np.zeros(1, np.float32)) - np.float32(shift)
    return BiasCorrection(corrections, tuple(o.site.node for o in operators if o not in corrected))


def logit_operator(graph: Graph) -> onnx.NodeProto | None:
    """Returns the operator whose only output channel is the logit of change: the last one with a constant bias.

    Returns None if that operator has more channels, as in a graph with one channel for each class, or if its output is
    changed on its way to the graph's output, as that of a gate, which multiplies others.
    """
    for node in reversed(graph.nodes):
        operand = bias_of(graph, node) if node.op_type in ("Conv", "MatMul") else None
        if operand is not None:
            bias = graph.constant(graph.by_name[operand[0]].input[operand[1]])
            made = graph.by_name[operand[0]].output[0]
            return node if bias.size == 1 and _only_presented(graph, made) else None
    return None


def _only_presented(graph: Graph, name: str) -> bool:
    """Returns whether all that happens to ``name`` is that it is resized, moved, or made a probability or a mask."""
    readers = graph.consumers[name]
    presented = all(node.op_type in _PRESENTING or interpolates(node) for node in readers)
    return presented and all(_only_presented(graph, node.output[0]) for node in readers)


def logit_shift(exact: Sequence[NDArray[np.float32]], shifted: Sequence[NDArray[np.float32]]) -> float:
    """Returns by how much ``shifted`` exceeds ``exact`` on average, where ``exact`` is undecided; one array per tile.

    The mean is shrunk towards 0 by its standard error over the tiles, as in :func:`shrunken_mean`. The error is that
    of a ratio, since tiles differ in their undecided pixels (Cochran, "Sampling Techniques", 1977, section 6.4).
    """
    undecided = [np.abs(values) < _UNDECIDED for values in exact]
    counts = np.array([mask.sum() for mask in undecided], np.float64)
    pairs = zip(shifted, exact, undecided, strict=True)
    sums = np.array([(after[mask] - before[mask]).sum(dtype=np.float64) for after, before, mask in pairs])
    if np.count_nonzero(counts) < 2:
        return 0.0
    mean = float(sums.sum() / counts.sum())
    error = float(np.square(sums - mean * counts).sum() * len(sums) / (len(sums) - 1) / counts.sum() ** 2)
    return mean * max(0.0, 1 - error / max(mean**2, _TINY))


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


@dataclass(frozen=True, eq=False, kw_only=True)
class _Operator:
    """A weighted operator with its float and its quantized weight, each one matrix per group (G, K, C)."""

    site: WeightedSite
    node: onnx.NodeProto
    kernel: tuple[int, ...]
    exact: NDArray[np.float32]
    quantized: NDArray[np.float32]
    recipe: Recipe
    found: Range

    @classmethod
    def of(
        cls, graph: Graph, site: WeightedSite, recipe: Recipe, ranges: Mapping[str, Range], learned: QuantizedWeights
    ) -> _Operator:
        node, axis = graph.by_name[site.node], site.weight_axis
        weight, scale = graph.constant(site.weight).astype(np.float32), scale_at(graph, site, recipe, ranges)
        values = learned[site.node] if site.node in learned else quantize_weight(weight, scale, axis, recipe)
        quantized = (values * along(scale, axis, weight.ndim)).astype(np.float32)
        groups = attribute(node, "group", 1)
        exact, rounded = (np.stack([as_matrix(x, axis) for x in np.split(w, groups)]) for w in (weight, quantized))
        return cls(
            site=site, node=node, kernel=tuple(weight.shape[2:]), exact=exact, quantized=rounded, recipe=recipe,
            found=ranges[site.activation],
        )  # fmt: skip

    def shift(self, values: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
        """Returns the mean error (C,) of the operator's output on its float input ``values``, at sampled positions."""
        rows = sampled_rows(self.node, values, self.kernel, ROWS, seed)
        products = (
            np.einsum("gk,gkc->gc", x.mean(axis=0, dtype=np.float64).reshape(len(w), -1), w)
            for x, w in ((fake_quantize(rows, self.found, self.recipe), self.quantized), (rows, self.exact))
        )
        after, before = products
        return np.asarray(after - before, np.float64).reshape(-1)


def _renamed(model: onnx.ModelProto, sites: Sequence[QuantizerSite]) -> list[QuantizerSite]:
    """Returns ``sites`` with the names of the corrected biases; a shared bias gets one name per node."""
    nodes = Graph(model).by_name
    return [
        replace(p, bias=str(nodes[p.node].input[2])) if isinstance(p, WeightedSite) and p.bias else p for p in sites
    ]
