"""Computes change detection metrics from one confusion matrix over all pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Mask
from misgnet_runtime.errors import GateFailed


@dataclass(frozen=True)
class Confusion:
    """Pixel counts; "positive" is the changed class. A metric whose denominator is 0 is None."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    @classmethod
    def of(cls, predicted: Mask, label: Mask) -> Confusion:
        """Counts the pixels of two bool arrays of equal shape."""
        tp = int(np.count_nonzero(predicted & label))
        fp = int(np.count_nonzero(predicted)) - tp
        fn = int(np.count_nonzero(label)) - tp
        return cls(tp, fp, fn, predicted.size - tp - fp - fn)

    @classmethod
    def total(cls, parts: list[Confusion]) -> Confusion:
        return reduce(add, parts, cls())

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def pixels(self) -> int:
        return self.tp + self.fp + self.fn + self.tn

    @property
    def changed(self) -> int:
        """Returns the number of pixels that are changed in the label."""
        return self.tp + self.fn

    @property
    def precision(self) -> float | None:
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        return _ratio(self.tp, self.changed)

    @property
    def f1(self) -> float | None:
        """Returns 2 tp / (2 tp + fp + fn); None if the label holds no change."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn) if self.changed else None

    @property
    def iou(self) -> float | None:
        return _ratio(self.tp, self.tp + self.fp + self.fn) if self.changed else None

    @property
    def accuracy(self) -> float | None:
        return _ratio(self.tp + self.tn, self.pixels)

    @property
    def false_alarms(self) -> float | None:
        """Returns the share of unchanged pixels that are predicted as changed."""
        return _ratio(self.fp, self.fp + self.tn)

    @property
    def kappa(self) -> float | None:
        """Returns Cohen's kappa: the agreement beyond the agreement by chance of the two marginals."""
        if not self.pixels:
            return None
        n = self.pixels
        chance = ((self.tp + self.fp) * self.changed + (self.fn + self.tn) * (self.fp + self.tn)) / n**2
        return _ratio((self.tp + self.tn) / n - chance, 1 - chance)

    def scores(self) -> dict[str, float | None]:
        """Returns precision, recall, f1, iou, accuracy and kappa of the changed class, as fractions."""
        names = ("precision", "recall", "f1", "iou", "accuracy", "kappa")
        return {name: getattr(self, name) for name in names}


def require_finite(probability: NDArray[np.float32], source: str) -> NDArray[np.float32]:
    """Returns ``probability``. Raises GateFailed for NaN or Inf; a threshold would turn NaN into no change."""
    if not np.isfinite(probability).all():
        raise GateFailed(f"the output of {source} contains NaN or Inf; run misgnet-run verify")
    return probability


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
