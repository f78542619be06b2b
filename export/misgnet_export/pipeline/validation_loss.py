"""Tiles that decide: what a graph loses on them against the float graph. They neither calibrate nor judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from misgnet_calibration.algorithms.accuracy_control import NO_NUMBERS, Measurement
from misgnet_export.pipeline.agreement import Agreement, Answers, answers_of, compare
from misgnet_runtime.accuracy.gate import f1_drop
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Progress
from misgnet_runtime.raster.dataset import Tile, TileSet

_FEWER = 4


@dataclass(frozen=True)
class Loss:
    """What a graph loses: how closely it answers as the float graph does, and what accuracy control asks for."""

    agreement: Agreement
    measurement: Measurement


@dataclass(frozen=True)
class Decision:
    """Tiles, kept in memory since graph after graph is run on them, and what the float graph answers there."""

    tiles: tuple[Tile, ...]
    interface: Interface
    threshold: float
    expected: Answers

    @classmethod
    def of(
        cls, model: onnx.ModelProto, interface: Interface, tiles: TileSet, threshold: float, progress: Progress
    ) -> Decision:
        """Run the float graph on ``tiles``, which need labels."""
        read = tuple(tiles.tiles())
        return cls(read, interface, threshold, answers_of(model, interface, read, progress))

    def fewer(self) -> Decision:
        """Every fourth tile, for what is only to be compared."""
        return replace(self, tiles=self.tiles[::_FEWER], expected=self.expected[::_FEWER])

    def loss(self, model: onnx.ModelProto) -> Loss:
        """What ``model`` loses: F1 in points, pixels, and the mean difference of the probability of change."""
        found = answers_of(model, self.interface, self.tiles)
        close = compare(self.expected, found, self.threshold)
        if not all(np.isfinite(answer).all() for answer in found):
            return Loss(close, NO_NUMBERS)
        drop = f1_drop(self._confusion(self.expected), self._confusion(found))
        return Loss(close, Measurement(drop, close.pixels, close.mean))

    def _confusion(self, answers: Sequence[np.ndarray]) -> Confusion:
        return Confusion.total([
            Confusion.of(answer[tile.owned] > self.threshold, tile.label[tile.owned])
            for answer, tile in zip(answers, self.tiles, strict=True)
        ])  # fmt: skip
