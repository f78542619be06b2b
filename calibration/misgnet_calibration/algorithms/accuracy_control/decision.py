"""Decisions of accuracy control, as pure functions of measurements: no engine, no clock, no ONNX.

The split into a pure decision, a search and a backend follows NNCF's accuracy control (openvinotoolkit/nncf,
``src/nncf/quantization/algorithms/accuracy_control``), as does ranking groups by the gain of reverting each one alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Phase = Literal["start", "rank", "revert", "regain"]

_ByNames = dict[tuple[str, ...], float]

# Ratio of the standard deviation of a normal distribution to its median absolute deviation.
_DEVIATION = 1.4826


@dataclass(frozen=True)
class Group:
    """Quantized operators that are reverted to float together."""

    name: str
    nodes: tuple[str, ...]
    multiply_adds: int  # MACs of the group for one image pair


@dataclass(frozen=True)
class Measurement:
    """Comparison of one graph with the float model on the decision tiles.

    Raises ValueError for NaN: use NO_NUMBERS for a graph whose output has NaN.
    """

    f1_drop: float | None  # points; None if no label has change
    agreement: float  # share of pixels with the same mask, 0 to 1
    logit_error: float  # mean absolute difference of probabilities or of logits (the same in all of a search)

    def __post_init__(self) -> None:
        if math.isnan(self.f1_drop or 0.0) or not 0 <= self.agreement <= 1 or not self.logit_error >= 0:
            raise ValueError(f"{self} has an invalid value; use NO_NUMBERS for a graph whose output has NaN")


@dataclass(frozen=True)
class Limit:
    """Largest accepted loss.

    On few tiles F1 can rise by chance although the graph is broken; the agreement reveals that.
    """

    points: float  # of F1
    agreement: float | None = None  # smallest accepted share of pixels with the same mask, 0 to 1; None: not checked


NO_NUMBERS = Measurement(math.inf, 0.0, math.inf)
_PERFECT = Measurement(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Effect:
    """Gain of reverting ``groups`` and no others."""

    groups: tuple[str, ...]  # one group, or several tied groups
    points: float | None  # decrease of the excess; None if not measured
    error: float | None  # decrease of the logit error; None if not measured
    benefit: float  # share of the possible gain, -1 to 1
    score: float  # benefit divided by cost, by which the groups are ordered


@dataclass(frozen=True, kw_only=True)
class Step:
    """One evaluation of a search."""

    number: int
    phase: Phase
    changed: tuple[str, ...]  # the groups that this evaluation is about
    float_groups: tuple[str, ...]  # all groups that are float in it
    measurement: Measurement
    int8_share: float  # of the MACs with weights
    seconds: float  # from the start of the search to the end of this step
    accepted: bool
    reason: str
    estimated: bool = False  # by a cheaper measurement, which is used only for ranking


def loss(found: Measurement) -> float:
    """Returns the loss in points that is compared with the limit: F1 drop, or disagreement if no label has change.

    This corresponds to ``misgnet_runtime.accuracy.gate.decide``: if no label has change, every additional false alarm
    is a pixel that disagrees, so the disagreement is never smaller than the gate's other figure.
    """
    return round(100 * (1 - found.agreement), 9) if found.f1_drop is None else found.f1_drop


def excess(found: Measurement, limit: Limit) -> float:
    """Returns by how many points (of F1 or of pixels, the worse of both) a graph exceeds the limit; <= 0 passes."""
    over = loss(found) - limit.points
    return over if limit.agreement is None else max(over, round(100 * (limit.agreement - found.agreement), 9))


def passes(found: Measurement, limit: Limit) -> bool:
    """Returns whether a graph is within the limit."""
    return excess(found, limit) <= 0


def reason(found: Measurement, limit: Limit) -> str:
    """Returns the verdict as text."""
    points = loss(found)
    figure = f"pixels disagree by {points:.3f}" if found.f1_drop is None else f"F1 drop {points:+.3f}"
    lost = f"{figure} points, {'within' if points <= limit.points else 'more than'} "
    if limit.agreement is None or found.agreement >= limit.agreement:
        return f"{lost}{limit.points:g}"
    return f"{lost}{limit.points:g}, but only {100 * found.agreement:.3f} % of pixels agree"


def rank(
    groups: Sequence[Group], start: Measurement, floor: Measurement | None,
    alone: Mapping[tuple[str, ...], Measurement], limit: Limit,
) -> tuple[Effect, ...]:  # fmt: skip
    """Returns all groups, and the ties that were measured, in the order in which to revert them.

    Groups that pass alone come first. The others follow by benefit per cost (the greedy rule for a knapsack; Dantzig,
    "Discrete-variable extremum problems", 1957). The cost is a group's share of the MACs plus that of an average
    group, so that a group without MACs also needs a benefit.

    The benefit is the mean of two shares: of the possible gain in excess, which is the criterion, and of the possible
    gain in logit error. Every pixel contributes to the logit error, so it is precise even on few tiles, where F1
    depends on the pixels near the threshold. For the same reason points count only as far as they exceed the usual
    variation among groups. A group that was not measured gets an equal part of the gain that the others leave.

    Args:
        groups: The groups to rank.
        start: Measurement with everything quantized.
        floor: Measurement with everything float; None if unknown.
        alone: Measurements with only the named groups float.
        limit: The limit of the search.
    """
    points = {names: _bounded(excess(start, limit)) - _bounded(excess(found, limit)) for names, found in alone.items()}
    errors = {names: _bounded(start.logit_error) - _bounded(found.logit_error) for names, found in alone.items()}
    benefits = _benefits(points, errors, start, floor or _PERFECT, limit)
    singles = [(group.name,) for group in groups]
    benefits = dict.fromkeys(singles, _unexplained(singles, benefits)) | benefits
    costs = _costs(groups, benefits)
    effects = [
        Effect(names, points.get(names), errors.get(names), benefit, benefit / costs[names])
        for names, benefit in benefits.items()
    ]
    passing = {names for names, found in alone.items() if passes(found, limit)}
    return tuple(
        sorted(effects, key=lambda effect: (effect.groups not in passing, -effect.score, costs[effect.groups]))
    )


def explained(effects: Iterable[Effect]) -> float:
    """Returns the share of the possible gain that single groups account for: about 1 if their effects add up."""
    return sum(effect.benefit for effect in effects if len(effect.groups) == 1 and effect.points is not None)


def prefixes(effects: Iterable[Effect]) -> list[frozenset[str]]:
    """Returns the sets of float groups after the first, the first two, ... of the ranking; each is larger."""
    states = [frozenset[str]()]
    for effect in effects:
        if not states[-1].issuperset(effect.groups):
            states.append(states[-1].union(effect.groups))
    return states[1:]


def next_prefix(failed: int, passed: int) -> int | None:
    """Returns the length of the prefix to measure next; None if the search is finished.

    ``failed`` is the longest prefix that failed. ``passed`` is the shortest that passed, or one more than the longest
    prefix if none is known to pass. Lengths double from the front, since a good ranking needs few groups, then halve
    (Bentley and Yao, "An almost optimal algorithm for unbounded searching", 1976): about 2 log2(k) measurements to
    find the first k, compared with k one by one. That more float groups pass is only an expectation, but the prefix of
    length ``passed`` was measured.
    """
    return min(max(1, 2 * failed), (failed + passed) // 2) if passed - failed > 1 else None


def presumed_failed(float_groups: frozenset[str], failures: Iterable[frozenset[str]]) -> bool:
    """Returns whether a state with these and more float groups failed already; then it need not be measured."""
    return any(float_groups <= failure for failure in failures)


def best(steps: Sequence[Step]) -> Step | None:
    """Returns the accepted step with most INT8, then smaller loss and logit error, then fewer float groups.

    Returns None if no step was accepted.
    """
    accepted = [step for step in steps if step.accepted]
    return max(accepted, key=lambda s: (s.int8_share, *_accuracy(s), -len(s.float_groups)), default=None)


def closest(steps: Sequence[Step], limit: Limit) -> Step:
    """Returns the step with the smallest excess, then smaller loss and logit error, then more INT8.

    Estimates are ignored.
    """
    measured = [step for step in steps if not step.estimated]
    return max(measured, key=lambda s: (-excess(s.measurement, limit), *_accuracy(s), s.int8_share))


def seconds_left(per_evaluation: float, evaluations: int, budget_left: float) -> float:
    """Returns an estimate of the seconds to the end of the search, at most the remaining budget."""
    return min(per_evaluation * evaluations, max(0.0, budget_left))


def _accuracy(step: Step) -> tuple[float, float]:
    return -loss(step.measurement), -step.measurement.logit_error


def _benefits(points: _ByNames, errors: _ByNames, start: Measurement, floor: Measurement, limit: Limit) -> _ByNames:
    whole = _bounded(excess(start, limit)) - min(_bounded(excess(floor, limit)), 0.0)
    whole_error = _bounded(start.logit_error) - _bounded(floor.logit_error)
    sharp = _beyond_noise(points)
    return {names: (_share(sharp[names], whole) + _share(errors[names], whole_error)) / 2 for names in points}


def _unexplained(singles: Sequence[tuple[str, ...]], benefits: _ByNames) -> float:
    """Returns, for each of ``singles`` that was not measured, its part of the gain that the measured ones leave."""
    known = [benefits[names] for names in singles if names in benefits]
    return max(0.0, 1 - sum(known)) / max(1, len(singles) - len(known))


def _beyond_noise(points: _ByNames) -> _ByNames:
    """Returns by how much each effect exceeds the usual deviation among them; 0 for smaller effects.

    Few groups matter, so the spread of the others is noise: soft thresholding with the median absolute deviation
    (Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", 1994).
    """
    middle = median(points.values()) if points else 0.0
    usual = _DEVIATION * median(abs(value - middle) for value in points.values()) if points else 0.0
    return {names: math.copysign(max(0.0, abs(value) - usual), value) for names, value in points.items()}


def _costs(groups: Sequence[Group], reverted: Iterable[tuple[str, ...]]) -> _ByNames:
    whole = max(1, sum(group.multiply_adds for group in groups))
    single = {group.name: group.multiply_adds / whole + 1 / len(groups) for group in groups}
    return {names: sum(single[name] for name in names) for names in reverted}


def _share(part: float, whole: float) -> float:
    return min(1.0, max(-1.0, part / whole)) if whole > 0 else 0.0


def _bounded(value: float) -> float:
    """Returns ``value``, with infinity replaced by the largest number, so that differences are not NaN."""
    return min(value, sys.float_info.max)
