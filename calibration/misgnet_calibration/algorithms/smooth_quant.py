"""SmoothQuant: moves outliers of activations into the weights that read them.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
ICML 2023, equation 4. An activation tensor has one quantization step for all its channels, so a channel with large
values reduces the resolution of the others; weights have a step per output channel and can absorb the outliers. Here
alpha is chosen per norm, by the quantization error of the products that follow it, instead of the paper's fixed 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_calibration.algorithms.layer_norms import Factors, Norm, Reader, multiplied, rescaled, scalable_norms
from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.conv_rows import Rows, as_matrix, sampled_rows
from misgnet_calibration.quantizer.placement import quantizer_sites, weighted
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.scales import fake_quantize, quantize_weight, weight_scale
from misgnet_calibration.statistics.collect import per_tile
from misgnet_calibration.statistics.intermediate import spread_tiles, tile_activations
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.raster.dataset import TileSet

TILES = 64  # maximum number of tiles used
ALPHAS = (0.3, 0.45, 0.6, 0.75, 0.9)
SAMPLED_ROWS = 512  # rows, over all tiles, on which a product's error is estimated
LARGEST_FACTOR = 64.0  # the smallest is its inverse; beyond that the weights lose their resolution


@dataclass(frozen=True)
class Choice:
    """The alpha chosen for one norm."""

    norm: str
    alpha: float | None  # None: the norm is not changed
    errors: Mapping[float | None, float]  # by alpha: relative squared error of the products, summed over the readers


@dataclass(frozen=True)
class Smoothed:
    """A smoothed graph, which computes the same function as the original one."""

    model: onnx.ModelProto
    choices: tuple[Choice, ...]
    absolute_maxima: Mapping[str, float]  # of the tensors that were rescaled


def smooth(
    model: onnx.ModelProto, interface: Interface, tiles: TileSet, recipe: Recipe, progress: Progress | None = None
) -> Smoothed:
    """Moves outliers of the float graph's LayerNorms into the following weights, wherever that lowers the error.

    Takes one pass over at most TILES of ``tiles``, evenly spread. Memory use is a few hundred rows per product, for any
    number of tiles. Activations must be observed again afterwards. Raises InputError, naming the tile, if an activation
    is NaN or Inf; also if there are fewer than two tiles.
    """
    tiles = spread_tiles(tiles, TILES)
    graph = Graph(model)
    quantized = {p.node for p in weighted(quantizer_sites(graph, recipe))}
    norms = scalable_norms(graph, quantized)
    if not norms:
        return Smoothed(model, (), {})
    # Readers that stay float have no quantization error.
    evaluated = [replace(n, readers=tuple(r for r in n.readers if r.node in quantized)) for n in norms]
    observed = _observe(model, graph, interface, tiles, evaluated, progress=progress)
    chosen = [(norm, *_choose(graph, norm, observed, recipe)) for norm in evaluated]
    factors = {norm.node: by for norm, choice, by in chosen if choice.alpha is not None}
    absolute_maxima = {
        name: float((observed.absolute_maxima[norm.node] / factors[norm.node]).max())
        for norm in norms if norm.node in factors
        for name in norm.tensors
    }  # fmt: skip
    return Smoothed(rescaled(model, norms, factors), tuple(choice for _, choice, _ in chosen), absolute_maxima)


def smoothing_factors(activation: NDArray[np.float32], weight: NDArray[np.float32], alpha: float) -> Factors:
    """Returns factors (C,), by which the activation is divided, from the absolute maxima (C,) of both operands.

    A factor is max|X|^alpha / max|W|^(1 - alpha). It is 1 for a channel that is all zeros in either operand. Only the
    ratios of the factors matter: they are normalized to a geometric mean of 1, so that ranges keep their size overall.
    """
    x, w = activation.astype(np.float64), weight.astype(np.float64)
    active = (x > 0) & (w > 0)
    if not active.any():
        return np.ones(len(x), np.float32)
    logarithms = alpha * np.log(x[active]) - (1 - alpha) * np.log(w[active])
    limit = np.log(LARGEST_FACTOR)
    factors = np.ones(len(x))
    factors[active] = np.exp(np.clip(logarithms - logarithms.mean(), -limit, limit))
    return factors.astype(np.float32)


def best_alpha(errors: Mapping[float | None, float]) -> float | None:
    """Returns the alpha with the smallest error; None if no alpha is better than leaving the norm unchanged."""
    return min(errors, key=lambda alpha: (errors[alpha], alpha is not None))


@dataclass(frozen=True)
class _Statistics:
    absolute_maxima: Mapping[str, NDArray[np.float32]]  # (C,), by norm
    rows: Mapping[str, Rows]  # sampled rows (N, K) that a reader multiplies by its weight, by node


def _observe(
    model: onnx.ModelProto, graph: Graph, interface: Interface, tiles: TileSet, norms: list[Norm],
    *, progress: Progress | None,
) -> _Statistics:  # fmt: skip
    names = [*(norm.tensors[0] for norm in norms), *(r.activation for norm in norms for r in norm.readers)]
    absolute_maxima: dict[str, NDArray[np.float32]] = {}
    sampled: dict[str, list[Rows]] = {}
    each = -(-SAMPLED_ROWS // len(tiles))
    for seed, values in enumerate(
        tile_activations(model, interface, tiles.tiles(), names, per_tile(progress, len(tiles)))
    ):
        for norm in norms:
            channels = np.abs(values[norm.tensors[0]]).reshape(-1, values[norm.tensors[0]].shape[-1]).max(axis=0)
            absolute_maxima[norm.node] = np.maximum(absolute_maxima.get(norm.node, 0), channels)
            for reader in norm.readers:
                node = graph.by_name[reader.node]
                rows = sampled_rows(node, values[reader.activation], _kernel(graph, node), each, seed)
                sampled.setdefault(reader.node, []).append(rows)
    return _Statistics(absolute_maxima, {name: np.concatenate(parts) for name, parts in sampled.items()})


def _choose(graph: Graph, norm: Norm, observed: _Statistics, recipe: Recipe) -> tuple[Choice, Factors]:
    candidates: dict[float | None, Factors] = {None: np.ones(len(observed.absolute_maxima[norm.node]), np.float32)}
    candidates |= {alpha: _factors(graph, norm, observed, alpha) for alpha in ALPHAS}
    errors = {alpha: _error(graph, norm, observed, by, recipe) for alpha, by in candidates.items()}
    best = best_alpha(errors)
    return Choice(norm.node, best, errors), candidates[best]


def _factors(graph: Graph, norm: Norm, observed: _Statistics, alpha: float) -> Factors:
    weights = [_by_input_channel(graph, reader.node, reader.input_axis) for reader in norm.readers]
    return smoothing_factors(observed.absolute_maxima[norm.node], np.max(weights, axis=0), alpha)


def _by_input_channel(graph: Graph, node: str, axis: int) -> NDArray[np.float32]:
    """Returns the absolute maximum (C,) of the weights of each input channel."""
    weight = np.abs(graph.constant(graph.by_name[node].input[1]))
    return np.asarray(weight.max(axis=tuple(i for i in range(weight.ndim) if i != axis)), np.float32)


def _error(graph: Graph, norm: Norm, observed: _Statistics, by: Factors, recipe: Recipe) -> float:
    """Returns the summed relative quantization error of the norm's products, with its channels divided by ``by``."""
    every = [_scaled(observed.rows[reader.node], by) for reader in norm.readers]
    found = _range(every)  # one range: all readers receive the same values, rearranged
    return sum(
        _product_error(graph, reader, rows, by, found=found, recipe=recipe)
        for reader, rows in zip(norm.readers, every, strict=True)
    )


def _product_error(graph: Graph, reader: Reader, rows: Rows, by: Factors, *, found: Range, recipe: Recipe) -> float:
    weight = multiplied(graph.constant(graph.by_name[reader.node].input[1]).astype(np.float32), by, reader.input_axis)
    axis = 1 - reader.input_axis  # of the output channels
    scale = weight_scale(weight, axis, recipe, None, 1.0)
    quantized = as_matrix(quantize_weight(weight, scale, axis, recipe), axis)
    exact = rows @ as_matrix(weight, axis)
    rounded = fake_quantize(rows, found, recipe) @ (quantized * scale).astype(np.float32)
    power = float(np.square(exact, dtype=np.float64).mean())
    return float(np.square(exact - rounded, dtype=np.float64).mean()) / power if power else 0.0


def _scaled(rows: Rows, factors: Factors) -> Rows:
    """Divides each channel by its factor; a convolution's row holds the whole patch of one channel after another."""
    return np.divide(rows, np.repeat(factors, rows.shape[1] // len(factors)), dtype=np.float32)


def _range(every: Iterable[Rows]) -> Range:
    low, high = zip(*((float(rows.min()), float(rows.max())) for rows in every), strict=True)
    return Range(min(0.0, *low), max(0.0, *high))


def _kernel(graph: Graph, node: onnx.NodeProto) -> tuple[int, ...]:
    return tuple(graph.shape(node.input[1])[2:])
