"""Learned rounding: rounds weights so that the error of their products is small, using sampled inputs.

Nearest rounding minimises the error of each weight. The error of the product matters more: if inputs are correlated,
the error of one weight can be compensated by others. GPTQ (Frantar et al., ICLR 2023) rounds one input after another
and moves the remaining error onto the inputs that follow, using the inputs' second moments H = E[x x^T]. Chen et al.,
"The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm", 2025, show that processing the inputs from
last to first with the Cholesky factor of H itself is equivalent; this module does so, since it needs no inverse.
AdaRound (Nagel et al., ICML 2020) minimises the same error by gradient descent in thousands of steps per layer, which
takes minutes on two cores instead of seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_calibration.onnx_graph.graph import Graph, attribute
from misgnet_calibration.quantizer.conv_rows import Rows, as_matrix, from_matrix, sampled_rows
from misgnet_calibration.quantizer.placement import QuantizerSite, WeightedSite, weighted
from misgnet_calibration.quantizer.qdq import scale_at
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.scales import fake_quantize, largest_quantized, quantize_weight
from misgnet_calibration.statistics.collect import per_tile
from misgnet_calibration.statistics.intermediate import spread_tiles, tile_activations
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.raster.dataset import TileSet

TILES = 64  # maximum number of tiles for learning and deciding: thousands of rows per product
ROWS = 128  # rows per product and tile
HELD_OUT = 4  # every fourth tile decides between learned and nearest rounding
_DAMPING = 0.01  # share of the mean second moment that is added to the diagonal, as in GPTQ
_TINY = 1e-30
_BLOCK = 128  # inputs whose errors are propagated in one matrix product


@dataclass(frozen=True)
class RoundingError:
    """Relative squared error of one product on held-out tiles, with nearest and with learned rounding."""

    node: str
    nearest: float
    learned: float

    @property
    def kept(self) -> bool:
        """Whether the learned values are better; False for NaN."""
        return self.learned < self.nearest


@dataclass(frozen=True)
class Rounding:
    """Result of learned rounding."""

    quantized_weights: Mapping[str, NDArray[np.int8]]  # by node, in the weight's shape; only where the error decreases
    errors: tuple[RoundingError, ...]


def learn_rounding(
    model: onnx.ModelProto, interface: Interface, tiles: TileSet, sites: Sequence[QuantizerSite], recipe: Recipe,
    *, ranges: Mapping[str, Range], progress: Progress | None = None,
) -> Rounding:  # fmt: skip
    """Returns quantized values of the weights of ``sites``, learned from the quantized activations on ``tiles``.

    Grouped convolutions keep nearest rounding, since each group reads different channels. At most TILES of ``tiles``
    are used, evenly spread: three quarters for learning, the others to decide whether a site uses the learned values.
    Memory use is one (K, K) matrix per site, for any number of tiles. Raises InputError, naming the tile, if an
    activation is NaN or Inf; also if there are fewer than two tiles.
    """
    tiles = spread_tiles(tiles, TILES)
    deciding = tiles.subset(range(0, len(tiles), HELD_OUT))
    learning = tiles.subset([i for i in range(len(tiles)) if i % HELD_OUT])
    graph = Graph(model)
    rounder = _Rounder(graph, recipe, ranges)
    whole = [p for p in weighted(sites) if attribute(graph.by_name[p.node], "group", 1) == 1]
    names = [p.activation for p in whole]
    tile_done = per_tile(progress, len(tiles))

    def rows_on(part: TileSet) -> Iterator[tuple[WeightedSite, Rows]]:
        for seed, values in enumerate(tile_activations(model, interface, part.tiles(), names, tile_done)):
            for site in whole:
                yield site, rounder.rows(site, values[site.activation], seed)

    moments = second_moments(rows_on(learning))
    learned = {p.node: rounder.learned(p, moments.pop(p.node)) for p in whole}
    matrices = {p.node: (rounder.matrix(p), rounder.error(p), rounder.error(p, learned[p.node])) for p in whole}
    errors = _errors(rows_on(deciding), matrices)
    return Rounding({e.node: learned[e.node] for e in errors if e.kept}, errors)


def round_weights(
    weight: NDArray[np.floating], scale: NDArray[np.floating], moments: NDArray[np.floating], limit: int
) -> NDArray[np.int8]:
    """Returns quantized values (K, C) in steps of ``scale`` (C,), within ``limit``, for ``weight`` (K, C).

    ``moments`` is H = E[x x^T] (K, K). With H = L L^T the error of the products is the norm of L^T times the weights'
    error, and row i of that product depends only on weights from i on. So the weights are rounded from the last to the
    first, each to the value that minimises its own row.
    """
    order = np.argsort(np.diag(moments), kind="stable")  # the strongest inputs are last, so they are rounded first
    damped = moments[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices_from(damped)] += _DAMPING * float(np.diag(moments).mean()) or 1.0  # 1 if all inputs are 0
    lower = np.linalg.cholesky(damped)
    steps = weight[order].astype(np.float64) / scale
    off = np.zeros_like(steps)  # weight minus quantized value, for the weights rounded so far
    for start in reversed(range(0, len(steps), _BLOCK)):
        stop = min(start + _BLOCK, len(steps))
        passed = lower[stop:, start:stop].T @ off[stop:]
        for i in range(stop - 1, start - 1, -1):
            carried = passed[i - start] + lower[i + 1 : stop, i] @ off[i + 1 : stop]
            rounded = np.clip(np.rint(steps[i] + carried / lower[i, i]), -limit, limit)
            off[i] = steps[i] - rounded
    quantized = np.empty_like(off)
    quantized[order] = steps - off
    return np.rint(quantized).astype(np.int8)


def second_moments(rows: Iterable[tuple[WeightedSite, Rows]]) -> dict[str, NDArray[np.float32]]:
    """Returns the mean of x x^T (K, K) over the rows of each site, by node."""
    sums: dict[str, NDArray[np.float32]] = {}
    counts: Counter[str] = Counter()
    for site, x in rows:
        product = x.T @ x
        if site.node in sums:
            sums[site.node] += product
        else:
            sums[site.node] = product
        counts[site.node] += len(x)
    return {node: total / np.float32(counts[node]) for node, total in sums.items()}


def _errors(
    rows: Iterable[tuple[WeightedSite, Rows]], matrices: Mapping[str, tuple[NDArray[np.float32], ...]]
) -> tuple[RoundingError, ...]:
    """Returns the errors; ``matrices``: by node the weight, its nearest and its learned rounding error, each (K, C)."""
    powers = {node: np.zeros(3) for node in matrices}
    for site, x in rows:
        powers[site.node] += [np.square(x @ m, dtype=np.float64).mean() for m in matrices[site.node]]
    relative = {node: power[1:] / max(power[0], _TINY) for node, power in powers.items()}
    return tuple(RoundingError(node, float(nearest), float(learned)) for node, (nearest, learned) in relative.items())


class _Rounder:
    """Rounds the sites' weights of one graph and recipe; they are matrices (K, C)."""

    def __init__(self, graph: Graph, recipe: Recipe, ranges: Mapping[str, Range]) -> None:
        self.graph = graph
        self.recipe = recipe
        self.ranges = ranges

    def rows(self, site: WeightedSite, values: NDArray[np.float32], seed: int) -> Rows:
        node, kernel = self.graph.by_name[site.node], tuple(self.graph.shape(site.weight)[2:])
        rows = sampled_rows(node, values, kernel, ROWS, seed)
        return fake_quantize(rows, self.ranges[site.activation], self.recipe)

    def matrix(self, site: WeightedSite) -> NDArray[np.float32]:
        return as_matrix(self._weight(site), site.weight_axis)

    def error(self, site: WeightedSite, quantized: NDArray[np.int8] | None = None) -> NDArray[np.float32]:
        """Returns the weight minus its ``quantized`` values (default: nearest rounding)."""
        weight, scale, axis = self._weight(site), self._scale(site), site.weight_axis
        if quantized is None:
            quantized = quantize_weight(weight, scale, axis, self.recipe)
        return np.asarray(as_matrix(weight, axis) - as_matrix(quantized, axis) * scale, np.float32)

    def learned(self, site: WeightedSite, moments: NDArray[np.float32]) -> NDArray[np.int8]:
        quantized = round_weights(self.matrix(site), self._scale(site), moments, largest_quantized(self.recipe))
        return from_matrix(quantized, self._weight(site).shape, site.weight_axis)

    def _weight(self, site: WeightedSite) -> NDArray[np.float32]:
        return self.graph.constant(site.weight).astype(np.float32)

    def _scale(self, site: WeightedSite) -> NDArray[np.float32]:
        return scale_at(self.graph, site, self.recipe, self.ranges)
