"""The search for the graph that keeps the metric with as much INT8 as possible.

Everything quantized is measured first. Where that fails:

1. everything float, since what then still fails lies outside the groups, and no reverting mends it;
2. all groups without multiply-adds float at once, where there are any: that costs no speed, so where it passes
   there is nothing left to find. Unless the answers are further off than at the start, they stay float from then on;
3. rank: each other group float alone, the cheapest first, by ``estimate`` where the caller has a cheaper
   measurement, since only the order comes of it. Without one, the first that passes ends the ranking: no later
   single group costs less. Where all of them win less than half of what there is to win, groups that are tied by
   a common activation are measured together. Near the end of the budget the rest stays unranked, so that there is
   time to revert;
4. revert: the shortest prefix of the ranking that passes, by doubling and halving (``decision.next_prefix``);
5. regain: groups are quantized again, those with most multiply-adds first, and stay so where the graph still
   passes; one without any would win no speed back. After a success twice as many at once are tried, after a failure
   half, as in delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002).

NNCF's accuracy control (see ``decision``) reverts one group after another and stops at the first success. No
state is measured twice, and in (5) none that has fewer float groups than one that failed. What is returned was
measured and passed; it has the most INT8 of all that did, which need not be the most there is.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from misgnet_calibration.algorithms.accuracy_control.decision import (
    Effect,
    Group,
    Limit,
    Measurement,
    Step,
    best,
    closest,
    explained,
    next_prefix,
    passes,
    prefixes,
    presumed_failed,
    rank,
)
from misgnet_calibration.algorithms.accuracy_control.run import Evaluate, Listen, Run
from misgnet_runtime.errors import InputError

_EXPLAINED = 0.5

Stopped = Literal["at the start", "finished", "budget", "outside the groups"]


@dataclass(frozen=True, kw_only=True)
class ControlReport:
    """The path and its end. ``effects``: the ranking, empty where none was needed; ``stopped``: why it ended.

    ``budget_seconds``, ``seconds``: wall clock; ``result``: the best step that passed, or the
    closest one where none did (``passed`` says which).
    """

    limit: Limit
    budget_seconds: float
    seconds: float
    groups: tuple[Group, ...]
    effects: tuple[Effect, ...]
    steps: tuple[Step, ...]
    result: Step
    stopped: Stopped

    @property
    def passed(self) -> bool:
        return self.result.accepted

    @property
    def float_nodes(self) -> frozenset[str]:
        """The nodes that ``result`` keeps float."""
        names = set(self.result.float_groups)
        return frozenset(node for group in self.groups if group.name in names for node in group.nodes)


def control(
    groups: Sequence[Group], evaluate: Evaluate, limit: float, budget_seconds: float,
    *, estimate: Evaluate | None = None, ties: Sequence[tuple[str, ...]] = (), min_agreement: float | None = None,
    total_macs: int | None = None, listen: Listen | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ControlReport:  # fmt: skip
    """Find the float groups with which the loss is within ``limit`` points.

    ``estimate``: a cheaper ``evaluate``, for the ranking alone; ``ties``: names of groups of which one alone changes
    little (see ``groups.ties_of``); ``min_agreement``: share of pixels, 0 to 1, that must keep the float model's mask
    as well; ``total_macs``: those of the whole graph, where some are in no group.

    No evaluation begins after ``budget_seconds``; the first always takes place. The choice is the best of many on
    the same tiles, so the loss on others is larger on average: leave room between ``limit`` and what a gate
    allows there. Raises InputError where an argument makes no sense; what ``evaluate`` raises passes through.
    """
    allowed = Limit(limit, min_agreement)
    _check(groups, ties, allowed, budget_seconds, total_macs)
    run = Run(
        tuple(groups), evaluate, estimate,
        limit=allowed, budget=budget_seconds, total=total_macs, clock=clock, listen=listen,
    )  # fmt: skip
    stopped = _search(run, ties)
    result = best(run.steps) or closest(run.steps, allowed)
    return ControlReport(
        limit=allowed, budget_seconds=budget_seconds, seconds=run.elapsed(), groups=run.groups, effects=run.effects,
        steps=tuple(run.steps), result=result, stopped=stopped,
    )  # fmt: skip


def _check(
    groups: Sequence[Group], ties: Sequence[tuple[str, ...]], limit: Limit, budget_seconds: float, total: int | None
) -> None:
    unknown = {name for names in ties for name in names}.difference(group.name for group in groups)
    if unknown:
        raise InputError(f"accuracy control got a tie of '{min(unknown)}', which is none of the groups")
    twice = [name for name, count in Counter(group.name for group in groups).items() if count > 1]
    if twice:
        raise InputError(f"accuracy control got two groups named '{twice[0]}'; give each a name of its own")
    if not math.isfinite(limit.points) or not budget_seconds >= 0:
        raise InputError(
            f"accuracy control cannot keep to {limit.points} points in {budget_seconds} seconds; give numbers"
        )
    if limit.agreement is not None and not 0 <= limit.agreement <= 1:
        raise InputError(f"accuracy control was asked for an agreement of {limit.agreement}; give a share from 0 to 1")
    grouped = sum(group.multiply_adds for group in groups)
    if total is not None and total < grouped:
        raise InputError(f"the groups have {grouped} multiply-adds, but the whole graph is said to have {total}")


def _search(run: Run, ties: Sequence[tuple[str, ...]]) -> Stopped:
    names = tuple(group.name for group in run.groups)
    ahead = len(names) + _probes(len(names))
    if run.ask("start", (), frozenset(), ahead + 1):
        return "at the start"
    if run.limit.points >= 0 and run.may_go_on() and not run.ask("revert", names, frozenset(names), ahead):
        return "outside the groups"  # a limit below 0 asks for more than the float model has
    if run.groups and run.may_go_on():
        base = _revert_unweighted(run, ahead)
        if not passes(run.measured[base], run.limit):
            run.effects = _rank(run, ties, base)
            _regain(run, _revert(run, base, [base | state for state in prefixes(run.effects)]))
    return "budget" if run.cut_short else "finished"


def _revert_unweighted(run: Run, ahead: int) -> frozenset[str]:
    """The groups without multiply-adds, if the answers are no further off; none where there are no others to rank.

    The logit error says so, as in the ranking: on few tiles F1 hangs on the pixels next to the threshold.
    """
    free = frozenset(group.name for group in run.groups if not group.multiply_adds)
    if not 0 < len(free) < len(run.groups):
        return frozenset()
    run.ask("revert", run.in_order(free), free, ahead)
    start, found = run.measured[frozenset()], run.measured[free]
    return free if found.logit_error <= start.logit_error else frozenset()


def _rank(run: Run, ties: Sequence[tuple[str, ...]], base: frozenset[str]) -> tuple[Effect, ...]:
    groups = [group for group in run.groups if group.name not in base]
    exact = run.estimate is None
    floor = run.measured.get(frozenset(group.name for group in run.groups)) if exact else None
    start = run.measured[base] if exact else run.look((), base, len(groups))
    alone: dict[tuple[str, ...], Measurement] = {}

    def ranked_with(candidates: Sequence[tuple[str, ...]]) -> tuple[Effect, ...]:
        alone.update(_alone(run, candidates, base))
        return rank(groups, start, floor, alone, run.limit)

    effects = ranked_with([(group.name,) for group in groups])
    cured = exact and any(passes(found, run.limit) for found in alone.values())
    done = cured or explained(effects) >= _EXPLAINED or run.cut_short
    return effects if done else ranked_with(_without(ties, base))


def _without(ties: Sequence[tuple[str, ...]], base: frozenset[str]) -> list[tuple[str, ...]]:
    """What of ``ties`` is still one where ``base`` is float, each once."""
    left = dict.fromkeys(tuple(name for name in names if name not in base) for names in ties)
    return [names for names in left if len(names) > 1]


def _alone(run: Run, candidates: Sequence[tuple[str, ...]], base: frozenset[str]) -> dict[tuple[str, ...], Measurement]:
    """Measures the candidates with ``base``, the cheapest first, up to one that passes; leaves time to revert."""
    reserve = _probes(len(run.groups) - len(base))
    found: dict[tuple[str, ...], Measurement] = {}
    for names in sorted(candidates, key=run.cost):
        if not run.may_go_on(reserve):
            break
        state = base.union(names)
        found[names] = run.look(names, state, len(candidates) - len(found) - 1 + reserve)
        if run.estimate is None and passes(found[names], run.limit):
            break
    return found


def _revert(run: Run, base: frozenset[str], states: list[frozenset[str]]) -> frozenset[str]:
    """The first of the ``states``, which grow from ``base``, found to pass; nothing where none did."""
    known = run.measured.get(states[-1])
    failed, passed = 0, len(states) + (known is None or not passes(known, run.limit))
    while (count := next_prefix(failed, passed)) is not None and run.may_go_on():
        added = states[count - 1].difference(states[failed - 1] if failed else base)
        if run.ask("revert", run.in_order(added), states[count - 1], _probes(passed - failed) + count):
            passed = count
        else:
            failed = count
    return states[passed - 1] if passed <= len(states) else frozenset()


def _regain(run: Run, kept: frozenset[str]) -> None:
    candidates = [
        g.name for g in sorted(run.groups, key=lambda g: -g.multiply_adds) if g.name in kept and g.multiply_adds
    ]
    size = 1
    while candidates and run.may_go_on():
        chunk = candidates[:size]
        state = kept.difference(chunk)
        if not presumed_failed(state, run.failures()) and run.ask("regain", chunk, state, len(candidates) - 1):
            kept, candidates, size = state, candidates[size:], 2 * size
        elif len(chunk) > 1:
            size = len(chunk) // 2
        else:
            candidates, size = candidates[1:], 1


def _probes(count: int) -> int:
    """About how many measurements find one prefix among ``count``."""
    return count.bit_length()
