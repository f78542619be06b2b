"""Searches for the graph with as much INT8 as possible whose metric is within the limit.

First, the graph with everything quantized is measured. If it fails, these steps follow:

1. Everything float: if this also fails, the cause is outside of the groups, and reverting cannot fix it.
2. All groups without MACs float at once, if there are any. This costs no speed, so if it passes, the search is
   finished. Unless it increases the logit error, these groups stay float from then on.
3. rank: each other group float alone, the cheapest first; by ``estimate`` if the caller has a cheaper measurement,
   since only the order is needed. Without ``estimate``, the first group that passes ends the ranking: no later single
   group costs less. If all of them account for less than half of the possible gain, groups that are tied by a common
   activation are measured together. Near the end of the budget the remaining groups are not ranked, to leave time to
   revert.
4. revert: finds the shortest prefix of the ranking that passes, by doubling and halving (``decision.next_prefix``).
5. regain: groups are quantized again, those with most MACs first, and stay quantized if the graph still passes; groups
   without MACs are left out, since they would not gain speed. After a success twice as many are tried at once, after a
   failure half, as in delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input",
   2002).

NNCF's accuracy control (see ``decision``) reverts one group after another and stops at the first success. Here no
state is measured twice, and in step 5 none that has fewer float groups than one that failed. The result was measured
and passed; it has the most INT8 of all states that did, which is not necessarily the optimum.
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
    """Report of a search."""

    limit: Limit
    budget_seconds: float  # wall clock
    seconds: float  # wall clock
    groups: tuple[Group, ...]
    effects: tuple[Effect, ...]  # the ranking; empty if none was needed
    steps: tuple[Step, ...]
    result: Step  # the best step that passed, or the closest one if none did (see ``passed``)
    stopped: Stopped  # why the search ended

    @property
    def passed(self) -> bool:
        return self.result.accepted

    @property
    def float_nodes(self) -> frozenset[str]:
        """Nodes that are float in ``result``."""
        names = set(self.result.float_groups)
        return frozenset(node for group in self.groups if group.name in names for node in group.nodes)


def control(
    groups: Sequence[Group], evaluate: Evaluate, limit: float, budget_seconds: float,
    *, estimate: Evaluate | None = None, ties: Sequence[tuple[str, ...]] = (), min_agreement: float | None = None,
    total_macs: int | None = None, listen: Listen | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ControlReport:  # fmt: skip
    """Finds the float groups with which the loss is within ``limit`` points.

    No evaluation starts after ``budget_seconds``, except the first one. The result is the best of many states on the
    same tiles, so its loss on other tiles is larger on average: leave a margin between ``limit`` and a gate's limit on
    other tiles.

    Args:
        groups: The groups that may be reverted.
        evaluate: Measures the graph with the named groups float; its exceptions propagate.
        limit: Largest accepted loss in points.
        budget_seconds: Wall clock.
        estimate: A cheaper ``evaluate``, used only for the ranking.
        ties: Names of groups of which one alone has little effect (see ``groups.ties_of``).
        min_agreement: Share of pixels, 0 to 1, that must also have the float model's mask.
        total_macs: MACs of the whole graph, if some are in no group.
        listen: Receives every step.
        clock: Returns the time in seconds.

    Raises:
        InputError: An argument is invalid.
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
        raise InputError(f"accuracy control got a tie of '{min(unknown)}', which is not one of the groups")
    twice = [name for name, count in Counter(group.name for group in groups).items() if count > 1]
    if twice:
        raise InputError(f"accuracy control got two groups named '{twice[0]}'; give each its own name")
    if not math.isfinite(limit.points) or not budget_seconds >= 0:
        raise InputError(
            f"accuracy control got a limit of {limit.points} points and a budget of {budget_seconds} seconds; give "
            "finite numbers, and a budget of 0 or more"
        )
    if limit.agreement is not None and not 0 <= limit.agreement <= 1:
        raise InputError(f"accuracy control got an agreement of {limit.agreement}; give a share from 0 to 1")
    grouped = sum(group.multiply_adds for group in groups)
    if total is not None and total < grouped:
        raise InputError(f"the groups have {grouped} MACs, but the total given for the whole graph is {total}")


def _search(run: Run, ties: Sequence[tuple[str, ...]]) -> Stopped:
    names = tuple(group.name for group in run.groups)
    remaining = len(names) + _probes(len(names))
    if run.state_passes("start", (), frozenset(), remaining + 1):
        return "at the start"
    # A limit below 0 requires more than the float model achieves.
    check_float = run.limit.points >= 0 and run.has_budget()
    if check_float and not run.state_passes("revert", names, frozenset(names), remaining):
        return "outside the groups"
    if run.groups and run.has_budget():
        base = _revert_unweighted(run, remaining)
        if not passes(run.measured[base], run.limit):
            run.effects = _rank(run, ties, base)
            _regain(run, _revert(run, base, [base | state for state in prefixes(run.effects)]))
    return "budget" if run.cut_short else "finished"


def _revert_unweighted(run: Run, remaining: int) -> frozenset[str]:
    """Returns the groups without MACs, unless reverting them increases the logit error or there are no other groups.

    The logit error decides, as in the ranking: on few tiles F1 depends on the pixels near the threshold.
    """
    free = frozenset(group.name for group in run.groups if not group.multiply_adds)
    if not 0 < len(free) < len(run.groups):
        return frozenset()
    run.state_passes("revert", run.in_order(free), free, remaining)
    start, found = run.measured[frozenset()], run.measured[free]
    return free if found.logit_error <= start.logit_error else frozenset()


def _rank(run: Run, ties: Sequence[tuple[str, ...]], base: frozenset[str]) -> tuple[Effect, ...]:
    groups = [group for group in run.groups if group.name not in base]
    exact = run.estimate is None
    floor = run.measured.get(frozenset(group.name for group in run.groups)) if exact else None
    start = run.measured[base] if exact else run.rank_measurement((), base, len(groups))
    alone: dict[tuple[str, ...], Measurement] = {}

    def ranked_with(candidates: Sequence[tuple[str, ...]]) -> tuple[Effect, ...]:
        alone.update(_alone(run, candidates, base))
        return rank(groups, start, floor, alone, run.limit)

    effects = ranked_with([(group.name,) for group in groups])
    one_passes = exact and any(passes(found, run.limit) for found in alone.values())
    done = one_passes or explained(effects) >= _EXPLAINED or run.cut_short
    return effects if done else ranked_with(_without(ties, base))


def _without(ties: Sequence[tuple[str, ...]], base: frozenset[str]) -> list[tuple[str, ...]]:
    """Returns the distinct ``ties`` of at least two groups that remain if ``base`` is float."""
    left = dict.fromkeys(tuple(name for name in names if name not in base) for names in ties)
    return [names for names in left if len(names) > 1]


def _alone(run: Run, candidates: Sequence[tuple[str, ...]], base: frozenset[str]) -> dict[tuple[str, ...], Measurement]:
    """Measures the candidates with ``base``, the cheapest first, until one passes; leaves time to revert."""
    reserve = _probes(len(run.groups) - len(base))
    found: dict[tuple[str, ...], Measurement] = {}
    for names in sorted(candidates, key=run.cost):
        if not run.has_budget(reserve):
            break
        state = base.union(names)
        found[names] = run.rank_measurement(names, state, len(candidates) - len(found) - 1 + reserve)
        if run.estimate is None and passes(found[names], run.limit):
            break
    return found


def _revert(run: Run, base: frozenset[str], states: list[frozenset[str]]) -> frozenset[str]:
    """Returns the smallest of ``states``, which grow from ``base``, found to pass; an empty set if none did."""
    known = run.measured.get(states[-1])
    failed, passed = 0, len(states) + (known is None or not passes(known, run.limit))
    while (count := next_prefix(failed, passed)) is not None and run.has_budget():
        added = states[count - 1].difference(states[failed - 1] if failed else base)
        if run.state_passes("revert", run.in_order(added), states[count - 1], _probes(passed - failed) + count):
            passed = count
        else:
            failed = count
    return states[passed - 1] if passed <= len(states) else frozenset()


def _regain(run: Run, kept: frozenset[str]) -> None:
    candidates = [
        g.name for g in sorted(run.groups, key=lambda g: -g.multiply_adds) if g.name in kept and g.multiply_adds
    ]
    size = 1
    while candidates and run.has_budget():
        chunk = candidates[:size]
        state = kept.difference(chunk)
        worthwhile = not presumed_failed(state, run.failures())
        if worthwhile and run.state_passes("regain", chunk, state, len(candidates) - 1):
            kept, candidates, size = state, candidates[size:], 2 * size
        elif len(chunk) > 1:
            size = len(chunk) // 2
        else:
            candidates, size = candidates[1:], 1


def _probes(count: int) -> int:
    """Returns about how many measurements are needed to find one prefix among ``count``."""
    return count.bit_length()
