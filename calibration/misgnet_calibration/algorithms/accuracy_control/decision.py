"""What accuracy control decides, as pure functions of what was measured: no engine, no clock, no ONNX.

The split into a pure decision, a search around it and a backend beneath is that of NNCF's accuracy control
(openvinotoolkit/nncf, ``src/nncf/quantization/algorithms/accuracy_control``), as is ranking groups by what
reverting each one alone wins back.
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

# Median absolute deviation of a normal distribution to its standard deviation.
_DEVIATION = 1.4826


@dataclass(frozen=True)
class Group:
    """Quantized operators that go back to float together; ``multiply_adds`` are theirs for one image pair."""

    name: str
    nodes: tuple[str, ...]
    multiply_adds: int


@dataclass(frozen=True)
class Measurement:
    """One graph against the float model on the decision tiles.

    ``f1_drop``: points, None where the labels hold no change; ``agreement``: share of pixels with the same
    mask, 0 to 1; ``logit_error``: mean absolute difference of the probability or of the logits (the same one in
    all measurements of a search). Raises ValueError for NaN: a graph that answers NaN is NO_NUMBERS.
    """

    f1_drop: float | None
    agreement: float
    logit_error: float
    seconds_per_pair: float | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.f1_drop or 0.0) or not 0 <= self.agreement <= 1 or not self.logit_error >= 0:
            raise ValueError(f"{self} is no measurement; take NO_NUMBERS for a graph that answers NaN")


@dataclass(frozen=True)
class Limit:
    """What may be lost: ``points`` of F1, and where ``agreement`` is given only so many pixels, a share 0 to 1.

    On few tiles F1 can rise by chance while the graph is broken; the agreement shows it.
    """

    points: float
    agreement: float | None = None


NO_NUMBERS = Measurement(math.inf, 0.0, math.inf)
_PERFECT = Measurement(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Effect:
    """What reverting ``groups`` (one, or several that are tied) and no others wins back.

    ``points``: of excess; ``error``: of logit error; both None where that was not measured. ``benefit``: the
    share of what there is to win, -1 to 1; ``score``: benefit by cost, what the order is made of.
    """

    groups: tuple[str, ...]
    points: float | None
    error: float | None
    benefit: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One evaluation. ``changed``: the groups that it asks about; ``float_groups``: all that are float in it.

    ``int8_share``: of the multiply-adds with weights; ``seconds``: from the search's start to this step's end;
    ``estimated``: by a cheaper measurement, which ranks and accepts nothing.
    """

    number: int
    phase: Phase
    changed: tuple[str, ...]
    float_groups: tuple[str, ...]
    measurement: Measurement
    int8_share: float
    seconds: float
    accepted: bool
    reason: str
    estimated: bool = False


def loss(found: Measurement) -> float:
    """What is held against the limit's points: the F1 drop, or without any change the pixels that disagree.

    That is ``misgnet_runtime.accuracy.gate.decide``: where no label holds a change, every additional false alarm is a
    pixel that disagrees, so of the gate's two figures the disagreement is never the smaller one.
    """
    return round(100 * (1 - found.agreement), 9) if found.f1_drop is None else found.f1_drop


def excess(found: Measurement, limit: Limit) -> float:
    """How far beyond the limit a graph is, in points (of F1 or of pixels, the worse of the two); 0 or less passes."""
    over = loss(found) - limit.points
    return over if limit.agreement is None else max(over, round(100 * (limit.agreement - found.agreement), 9))


def passes(found: Measurement, limit: Limit) -> bool:
    """Whether all of the limit is kept."""
    return excess(found, limit) <= 0


def reason(found: Measurement, limit: Limit) -> str:
    """The verdict in words."""
    points = loss(found)
    what = f"pixels disagree by {points:.3f}" if found.f1_drop is None else f"F1 drop {points:+.3f}"
    lost = f"{what} points, {'within' if points <= limit.points else 'more than'} "
    if limit.agreement is None or found.agreement >= limit.agreement:
        return f"{lost}{limit.points:g}"
    return f"{lost}{limit.points:g}, but only {100 * found.agreement:.3f} % of pixels agree"


def rank(
    groups: Sequence[Group], start: Measurement, floor: Measurement | None,
    alone: Mapping[tuple[str, ...], Measurement], limit: Limit,
) -> tuple[Effect, ...]:  # fmt: skip
    """All groups, and the ties that were measured, in the order in which to revert them.

    ``start``: everything quantized; ``floor``: everything float, None where that is not known; ``alone``: only
    these groups float. What passes alone is first. The others come by benefit per cost (the greedy rule for a
    knapsack; Dantzig, "Discrete-variable extremum problems", 1957). The cost is the share of the multiply-adds
    plus an average group's, as a group that costs nothing must still win something.

    The benefit is the mean of two shares of the whole: of the excess to win, which is what is asked for, and of
    the logit error, which every pixel has a part in and which therefore is sharp on few tiles, where F1 hangs
    on the pixels next to the threshold. For the same reason points count only as far as they exceed what is
    usual among the groups. A group that was not measured gets an equal part of what the others do not explain.
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
    cured = {names for names, found in alone.items() if passes(found, limit)}
    return tuple(sorted(effects, key=lambda effect: (effect.groups not in cured, -effect.score, costs[effect.groups])))


def explained(effects: Iterable[Effect]) -> float:
    """Share of what there is to win that single groups win: about 1 where their effects add up."""
    return sum(effect.benefit for effect in effects if len(effect.groups) == 1 and effect.points is not None)


def prefixes(effects: Iterable[Effect]) -> list[frozenset[str]]:
    """What is float after the first, the first two, ... of the ranking; each state has more than the one before."""
    states = [frozenset[str]()]
    for effect in effects:
        if not states[-1].issuperset(effect.groups):
            states.append(states[-1].union(effect.groups))
    return states[1:]


def next_prefix(failed: int, passed: int) -> int | None:
    """The length of the prefix to measure next, between the longest that failed and the shortest that passed.

    ``passed`` is one more than there are where none is known to pass; the answer is None where the two have met.
    Doubles from the front, since a good ranking needs few, then halves (Bentley and Yao, "An almost optimal
    algorithm for unbounded searching", 1976): about 2 log2(k) measurements for the first k, where one after
    another takes k. More float groups pass in expectation only; the prefix of ``passed`` was measured all the same.
    """
    return min(max(1, 2 * failed), (failed + passed) // 2) if passed - failed > 1 else None


def presumed_failed(float_groups: frozenset[str], failures: Iterable[frozenset[str]]) -> bool:
    """Whether a state with these and more groups float failed already; then it is not worth a measurement."""
    return any(float_groups <= failure for failure in failures)


def best(steps: Sequence[Step]) -> Step | None:
    """Of the accepted steps the one with most INT8, then the smaller loss and logit error, then fewer float groups.

    None where no step was accepted.
    """
    accepted = [step for step in steps if step.accepted]
    return max(accepted, key=lambda s: (s.int8_share, *_accuracy(s), -len(s.float_groups)), default=None)


def closest(steps: Sequence[Step], limit: Limit) -> Step:
    """The step with the smallest excess, then the smaller loss and logit error, then more INT8; no estimate is one."""
    measured = [step for step in steps if not step.estimated]
    return max(measured, key=lambda s: (-excess(s.measurement, limit), *_accuracy(s), s.int8_share))


def seconds_left(per_evaluation: float, evaluations: int, budget_left: float) -> float:
    """Estimate of the time to the end of the search, which the budget bounds."""
    return min(per_evaluation * evaluations, max(0.0, budget_left))


def _accuracy(step: Step) -> tuple[float, float]:
    return -loss(step.measurement), -step.measurement.logit_error


def _benefits(points: _ByNames, errors: _ByNames, start: Measurement, floor: Measurement, limit: Limit) -> _ByNames:
    whole = _bounded(excess(start, limit)) - min(_bounded(excess(floor, limit)), 0.0)
    whole_error = _bounded(start.logit_error) - _bounded(floor.logit_error)
    sharp = _beyond_noise(points)
    return {names: (_share(sharp[names], whole) + _share(errors[names], whole_error)) / 2 for names in points}


def _unexplained(singles: Sequence[tuple[str, ...]], benefits: _ByNames) -> float:
    """What the measured ones of ``singles`` leave to win, for each of the others."""
    known = [benefits[names] for names in singles if names in benefits]
    return max(0.0, 1 - sum(known)) / max(1, len(singles) - len(known))


def _beyond_noise(points: _ByNames) -> _ByNames:
    """What of each effect exceeds a deviation that is usual among them; smaller ones count nothing.

    Few groups matter, so the others' spread is the noise: soft thresholding with the median absolute deviation
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
    """Infinity as the largest number, so that differences stay numbers."""
    return min(value, sys.float_info.max)
