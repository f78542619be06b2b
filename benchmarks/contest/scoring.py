"""What a contender's answers are worth: F1 on the evaluation tiles, and how many pixels the float reference shares."""

from __future__ import annotations

from dataclasses import dataclass

from misgnet_export.pipeline.agreement import INT8_AGREEMENT
from misgnet_runtime.accuracy.gate import Interval
from misgnet_runtime.accuracy.parity import EvaluatedTile
from misgnet_runtime.accuracy.parity import compare as parity


@dataclass(frozen=True)
class Scores:
    """``f1`` (None where no label has change), its drop in points with a 95 % interval, the share of equal pixels."""

    f1: float | None
    drop_points: float | None
    interval: Interval | None
    agreement: float

    @property
    def notes(self) -> list[str]:
        """What the figures must be read with."""
        broken = f"broken: fewer than {100 * INT8_AGREEMENT:.0f} % of the pixels agree"
        return [broken] if self.agreement < INT8_AGREEMENT else []


def scores_of(reference: list[EvaluatedTile], found: list[EvaluatedTile]) -> Scores:
    """The masks ``found`` against the reference's and the labels."""
    figures = parity("", "", reference, found, 0.0, device="")
    return Scores(figures.scores["f1"], figures.f1_drop_points, figures.interval, figures.agreement or 0.0)
