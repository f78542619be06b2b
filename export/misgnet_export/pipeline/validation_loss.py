"""Measures a graph's loss against the float graph on validation tiles, which neither calibrate nor evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from misgnet_calibration.algorithms.accuracy_control import NO_NUMBERS, Measurement
from misgnet_export.pipeline.agreement import Agreement, Predictions, compare, predictions_of
from misgnet_runtime.accuracy.gate import f1_drop
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.raster.dataset import Source, Tile, TileSet

_FEWER = 4


@dataclass(frozen=True)
class Loss:
    """The loss of a graph: its agreement with the float graph, and the measurement that accuracy control reads."""

    agreement: Agreement
    measurement: Measurement
    by_image: tuple[float, ...]  # mean difference of the probability of change, by source image

    @property
    def mean(self) -> float:
        return self.agreement.mean

    @property
    def pixels(self) -> float:
        return self.agreement.pixels


@dataclass(frozen=True)
class Decision:
    """Validation tiles that decisions are made on; kept in memory because many graphs run on them."""

    tiles: tuple[Tile, ...]
    interface: Interface
    threshold: float
    expected: Predictions  # of the float graph

    @classmethod
    def of(
        cls, model: onnx.ModelProto, interface: Interface, tiles: TileSet, threshold: float, progress: Progress
    ) -> Decision:
        """Runs the float graph on ``tiles``, which need labels."""
        read = tuple(tiles.tiles())
        return cls(read, interface, threshold, predictions_of(model, interface, read, progress))

    def fewer(self) -> Decision:
        """Returns every fourth tile, for estimates that only rank graphs."""
        return replace(self, tiles=self.tiles[::_FEWER], expected=self.expected[::_FEWER])

    @property
    def reference_f1(self) -> float | None:
        """F1 of the float graph, 0 to 1; None if no label has change."""
        return self._confusion(self.expected).f1

    def undecided(self, margin: float) -> float:
        """Returns the share of pixels whose probability in the float graph is at most ``margin`` from the threshold."""
        near = [np.abs(values - self.threshold) <= margin for values in self.expected]
        return float(np.mean([part.mean() for part in near]))

    def loss(self, model: onnx.ModelProto) -> Loss:
        """Measures the loss of ``model``: F1 in points, differing pixels, and mean difference of the probability."""
        found = predictions_of(model, self.interface, self.tiles)
        close = compare(self.expected, found, self.threshold)
        if not all(np.isfinite(values).all() for values in found):
            return Loss(close, NO_NUMBERS, ())
        drop = f1_drop(self._confusion(self.expected), self._confusion(found))
        return Loss(close, Measurement(drop, close.pixels, close.mean), self._by_image(found))

    def _by_image(self, predictions: Sequence[np.ndarray]) -> tuple[float, ...]:
        errors: dict[Source, list[float]] = {}
        for tile, values, expected in zip(self.tiles, predictions, self.expected, strict=True):
            errors.setdefault(tile.ref.source, []).append(float(np.abs(values - expected).mean()))
        return tuple(float(np.mean(found)) for found in errors.values())

    def _confusion(self, predictions: Sequence[np.ndarray]) -> Confusion:
        return Confusion.total([
            Confusion.of(values[tile.owned] > self.threshold, tile.label[tile.owned])
            for values, tile in zip(predictions, self.tiles, strict=True)
        ])  # fmt: skip
