"""Tiles that decide: what a graph loses on them against the float graph. They neither calibrate nor judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from misgnet_calibration.accuracy import NO_NUMBERS, Measurement
from misgnet_export.agreement import Agreement, Answers, answers_of, compare
from misgnet_runtime.callables import Progress
from misgnet_runtime.gate import f1_drop
from misgnet_runtime.images import Mask
from misgnet_runtime.manifest import Interface
from misgnet_runtime.metrics import Confusion
from misgnet_runtime.tiles import TileSet


@dataclass(frozen=True)
class Decision:
    """Tiles, what the float graph answers on them, and their labels bool (T, T).

    ``owned``: where each tile's own pixels lie; the others are a neighbour's or padding, and count for none.
    """

    tiles: TileSet
    interface: Interface
    threshold: float
    expected: Answers
    labels: tuple[Mask, ...]
    owned: tuple[tuple[slice, slice], ...]

    @classmethod
    def of(
        cls, model: onnx.ModelProto, interface: Interface, tiles: TileSet, threshold: float, progress: Progress
    ) -> Decision:
        """Run the float graph on ``tiles``, which need labels."""
        read = list(tiles.tiles())
        expected = answers_of(model, interface, tiles, progress)
        return cls(tiles, interface, threshold, expected, tuple(t.label for t in read), tuple(t.owned for t in read))

    def agreement(self, model: onnx.ModelProto) -> Agreement:
        """How closely ``model`` answers as the float graph does."""
        return compare(self.expected, answers_of(model, self.interface, self.tiles), self.threshold)

    def measurement(self, model: onnx.ModelProto) -> Measurement:
        """What ``model`` loses: F1 in points, pixels, and the mean difference of the probability of change."""
        found = answers_of(model, self.interface, self.tiles)
        if not all(np.isfinite(answer).all() for answer in found):
            return NO_NUMBERS
        close = compare(self.expected, found, self.threshold)
        return Measurement(f1_drop(self._confusion(self.expected), self._confusion(found)), close.pixels, close.mean)

    def _confusion(self, answers: Sequence[np.ndarray]) -> Confusion:
        return Confusion.total([
            Confusion.of(answer[own] > self.threshold, label[own])
            for answer, label, own in zip(answers, self.labels, self.owned, strict=True)
        ])  # fmt: skip
