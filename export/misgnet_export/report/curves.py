"""Places the points of small line plots, which the page draws as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from misgnet_export.report.figures import number, percent
from misgnet_runtime.bundle import MeasuredOverlap

_LEAST_RANGE = 0.004  # of the values; smaller differences are drawn small


@dataclass(frozen=True)
class Point:
    """A point of a curve."""

    x: float  # px from the left
    y: float  # px from the top
    overlap: int
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line plot; positions are pixels of the SVG."""

    title: str
    points: list[Point]
    ticks: list[tuple[float, str]]  # (y, value) of the smallest and the largest value
    width: int = 380
    height: int = 180
    left: int = 66
    right: int = 368
    bottom: int = 152

    @property
    def line(self) -> str:
        """The points as an SVG attribute."""
        return " ".join(f"{point.x},{point.y}" for point in self.points)


def of_overlaps(measured: Sequence[MeasuredOverlap], chosen: int) -> list[Curve]:
    """Returns the curves of F1 (if defined) and of seam agreement over the overlap in pixels."""
    if not measured:
        return []
    overlaps = [one.overlap for one in measured]
    found = []
    if all(one.f1 is not None for one in measured):
        scores = [one.f1 or 0.0 for one in measured]
        found.append(_curve("F1 by overlap in px", overlaps, scores, chosen, text=number))
    seams = [one.seam_agreement for one in measured]
    found.append(_curve("Seam agreement by overlap in px", overlaps, seams, chosen, text=partial(percent, digits=2)))
    return found


def _curve(
    title: str, overlaps: Sequence[int], values: Sequence[float], chosen: int, *, text: Callable[[float], str]
) -> Curve:
    middle, half = (max(values) + min(values)) / 2, max(max(values) - min(values), _LEAST_RANGE) / 2
    left, right, top, bottom = Curve.left + 12, Curve.right - 12, 34, Curve.bottom - 14

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - middle + half) / (2 * half), 1)

    points = [
        Point(round(left + (right - left) * overlap / max(overlaps), 1), y(value), overlap, overlap == chosen)
        for overlap, value in zip(overlaps, values, strict=True)
    ]
    ends = sorted({min(values), max(values)})
    return Curve(title=title, points=points, ticks=[(y(value), text(value)) for value in ends])
