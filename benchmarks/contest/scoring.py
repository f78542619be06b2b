"""Scores a contender's predictions: F1 on the evaluation tiles, and agreement with the float reference."""

from __future__ import annotations

from dataclasses import dataclass

from misgnet_runtime.accuracy.gate import LEAST_AGREEMENT, Interval
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.accuracy.parity import EvaluatedTile
from misgnet_runtime.accuracy.parity import compare as parity


@dataclass(frozen=True)
class Scores:
    """Scores of a contender."""

    # None if no label has change.
    f1: float | None
    # Drop of F1 against the reference, in points, and its 95 % interval.
    drop_points: float | None
    interval: Interval | None
    # Share of pixels equal to the reference's.
    agreement: float

    @property
    def notes(self) -> list[str]:
        """Returns warnings about the scores."""
        broken = f"broken: fewer than {100 * LEAST_AGREEMENT:.0f} % of the pixels agree"
        return [broken] if self.agreement < LEAST_AGREEMENT else []


def scores_of(reference: list[EvaluatedTile], found: list[EvaluatedTile]) -> Scores:
    """Scores the masks in ``found`` against the reference and the labels."""
    figures = parity("", "", reference, found, F1Limit(max_f1_drop=0.0), device="")
    return Scores(figures.scores["f1"], figures.f1_drop_points, figures.interval, figures.agreement or 0.0)
