"""State of a running search: measurements, durations, and the log of its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from misgnet_calibration.algorithms.accuracy_control.decision import (
    Effect,
    Group,
    Limit,
    Measurement,
    Phase,
    Step,
    passes,
    reason,
    seconds_left,
)

# Maps the names of the float groups to the measurement of that graph on the decision tiles.
Evaluate = Callable[[frozenset[str]], Measurement]
# Receives every step, and an estimate of the seconds to the end.
Listen = Callable[[Step, float], None]


class Run:
    """Measurements and clock of a running search."""

    def __init__(
        self, groups: tuple[Group, ...], evaluate: Evaluate, estimate: Evaluate | None, *, limit: Limit, budget: float,
        total: int | None, clock: Callable[[], float], listen: Listen | None,
    ) -> None:  # fmt: skip
        self.groups, self.evaluate, self.estimate, self.limit, self.budget = groups, evaluate, estimate, limit, budget
        self.total = sum(group.multiply_adds for group in groups) if total is None else total
        self.clock, self.listen, self.started = clock, listen, clock()
        self.steps: list[Step] = []
        self.measured: dict[frozenset[str], Measurement] = {}
        self.durations: dict[bool, list[float]] = {False: [], True: []}  # seconds; False: measurements, True: estimates
        self.effects: tuple[Effect, ...] = ()
        self.cut_short = False

    def elapsed(self) -> float:
        return self.clock() - self.started

    def has_budget(self, reserve: int = 0) -> bool:
        """Returns whether the budget allows one more evaluation and ``reserve`` others.

        If not, sets ``cut_short``; so call it only if there is more to do.
        """
        within = self.elapsed() + reserve * self.per_evaluation() < self.budget
        self.cut_short |= not within
        return within

    def per_evaluation(self, *, estimated: bool = False) -> float:
        return sum(self.durations[estimated]) / max(1, len(self.durations[estimated]))

    def state_passes(self, phase: Phase, changed: Sequence[str], float_groups: frozenset[str], remaining: int) -> bool:
        """Measures a state, at most once, and returns whether it passes.

        ``remaining``: about how many evaluations follow.
        """
        if float_groups not in self.measured:
            self.measured[float_groups] = self.evaluate(float_groups)
            self._log(phase, changed, float_groups, self.measured[float_groups], remaining)
        return passes(self.measured[float_groups], self.limit)

    def rank_measurement(self, changed: Sequence[str], float_groups: frozenset[str], remaining: int) -> Measurement:
        """Returns the measurement by which a state is ranked: an estimate, if the caller gave a cheaper function."""
        if self.estimate is None:
            self.state_passes("rank", changed, float_groups, remaining)
            return self.measured[float_groups]
        found = self.estimate(float_groups)
        self._log("rank", changed, float_groups, found, remaining, estimated=True)
        return found

    def failures(self) -> list[frozenset[str]]:
        return [state for state, found in self.measured.items() if not passes(found, self.limit)]

    def cost(self, names: Sequence[str]) -> int:
        """Returns the MACs of groups."""
        return sum(group.multiply_adds for group in self.groups if group.name in names)

    def in_order(self, names: frozenset[str]) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups if group.name in names)

    def _log(
        self, phase: Phase, changed: Sequence[str], float_groups: frozenset[str], found: Measurement, remaining: int,
        *, estimated: bool = False,
    ) -> None:  # fmt: skip
        accepted = passes(found, self.limit) and not estimated
        step = Step(
            number=len(self.steps) + 1, phase=phase, changed=tuple(changed), float_groups=self.in_order(float_groups),
            measurement=found, int8_share=self._int8_share(float_groups), seconds=self.elapsed(), accepted=accepted,
            reason=reason(found, self.limit), estimated=estimated,
        )  # fmt: skip
        self.durations[estimated].append(step.seconds - (self.steps[-1].seconds if self.steps else 0))
        self.steps.append(step)
        if self.listen:
            ends = accepted and (phase in ("start", "rank") or not self.cost(step.float_groups))
            left = self.budget - step.seconds
            self.listen(step, 0.0 if ends else seconds_left(self.per_evaluation(estimated=estimated), remaining, left))

    def _int8_share(self, float_groups: frozenset[str]) -> float:
        quantized = self.cost([group.name for group in self.groups if group.name not in float_groups])
        return quantized / max(1, self.total)
