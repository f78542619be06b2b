"""Chooses a calibrator for each tensor: the one whose range causes the least error in the operators that read it.

The error of a tensor's own values says little: a channel multiplied by small weights may be clipped at no cost, one
multiplied by large weights may not. So the candidates are compared after the operators that read the tensor: the
product of the weight with the quantized tensor is compared with its product with the float tensor, at sampled positions
of some calibration tiles. Only the activation is quantized, so that the weight's error does not affect the choice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_calibration.onnx_graph.graph import Graph, attribute
from misgnet_calibration.quantizer.conv_rows import as_matrix, sampled_rows
from misgnet_calibration.quantizer.placement import QuantizerSite, activations, date_twins, weighted
from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.quantizer.scales import fake_quantize
from misgnet_calibration.statistics.calibrators import DEFAULT, PER_TENSOR, Calibrator
from misgnet_calibration.statistics.collect import per_tile
from misgnet_calibration.statistics.intermediate import tile_activations
from misgnet_calibration.statistics.observers import Range, sampling_step
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.raster.dataset import TileSet

TILES = 16  # evenly spread; each provides ROWS positions of every operator
ROWS = 64
_TINY = 1e-30

Errors = dict[str, NDArray[np.float64]]  # by tensor, one error per candidate


@dataclass(frozen=True)
class PerTensor:
    """The calibrator that was chosen for each tensor, and the default one for all other tensors."""

    chosen: Mapping[str, Calibrator]
    name: str = PER_TENSOR

    def of(self, tensor: str) -> Calibrator:
        return self.chosen.get(tensor, DEFAULT)

    def __str__(self) -> str:
        counts = Counter(calibrator.name for calibrator in self.chosen.values())
        return f"{self.name}: {', '.join(f'{count} {name}' for name, count in counts.most_common())}"


def choose_per_tensor(
    model: onnx.ModelProto, interface: Interface, tiles: TileSet, sites: Sequence[QuantizerSite], recipe: Recipe,
    *, candidates: Mapping[Calibrator, Mapping[str, Range]], progress: Progress | None = None,
) -> PerTensor:  # fmt: skip
    """Chooses for every activation of ``sites`` the calibrator with the least error; one for the twins of both dates.

    ``candidates`` gives the ranges of each calibrator; of equally good ones, the first is taken. Raises InputError,
    naming the tile, if an activation is NaN or Inf.
    """
    names, few, graph = activations(sites), tiles.spread(TILES), Graph(model)
    consumers, twins = _consumers(graph, sites), date_twins(graph, sites)
    totals: Errors = defaultdict(lambda: np.zeros(len(candidates)))
    for seed, values in enumerate(tile_activations(model, interface, few.tiles(), names, per_tile(progress, len(few)))):
        for name in names:
            ranges = [found[name] for found in candidates.values()]
            for consumer in consumers[name]:
                totals[twins.get(name, name)] += consumer.errors(values[name], ranges, recipe, seed)
    calibrators = list(candidates)
    best = {name: calibrators[int(np.argmin(total))] for name, total in totals.items()}
    return PerTensor({name: best[twins.get(name, name)] for name in names})


@dataclass(frozen=True)
class _Consumer:
    """A reader of a tensor: an operator with its weight or, by default, later operators that see the tensor itself."""

    node: onnx.NodeProto | None = None
    kernel: tuple[int, ...] = ()
    weight: NDArray[np.float32] | None = None  # one matrix per group, (G, K, C)

    def errors(
        self, values: NDArray[np.float32], ranges: Iterable[Range], recipe: Recipe, seed: int
    ) -> NDArray[np.float64]:
        """Returns the mean squared error with each of ``ranges``, relative to the mean square of the exact output."""
        rows = self._rows(values, seed)
        power = np.square(self._product(rows), dtype=np.float64).mean()
        off = [self._product(fake_quantize(rows, found, recipe) - rows) for found in ranges]
        return np.array([np.square(x, dtype=np.float64).mean() for x in off]) / max(power, _TINY)

    def _rows(self, values: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
        if self.node is None:
            flat = values.reshape(-1)
            return flat[:: sampling_step(flat.size)]
        return sampled_rows(self.node, values, self.kernel, ROWS, seed)

    def _product(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the product of rows (N, G * K) and weight for each group, (G, N, C)."""
        if self.weight is None:
            return rows
        return rows.reshape(len(rows), len(self.weight), -1).transpose(1, 0, 2) @ self.weight


def _consumers(graph: Graph, sites: Sequence[QuantizerSite]) -> dict[str, list[_Consumer]]:
    """Returns, by tensor, the weighted operators that read it in INT8, or one default consumer if there are none."""
    found: dict[str, list[_Consumer]] = defaultdict(list)
    for site in weighted(sites):
        weight = graph.constant(site.weight).astype(np.float32)
        node, kernel = graph.by_name[site.node], tuple(weight.shape[2:])
        groups = attribute(node, "group", 1)
        parts = np.stack([as_matrix(part, site.weight_axis) for part in np.split(weight, groups)])
        found[site.activation].append(_Consumer(node, kernel, parts))
    for name in activations(sites):
        if name not in found:
            found[name] = [_Consumer()]
    return found
