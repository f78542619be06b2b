"""One search under way: what it has measured, what that took, and every step for the log."""

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

# Names of the groups that are float -> that graph on the decision tiles.
Evaluate = Callable[[frozenset[str]], Measurement]
# Told every step, and an estimate of the seconds to the end.
Listen = Callable[[Step, float], None]


class Run:
    """What a search has measured so far, and its clock."""

    def __init__(
        self, groups: tuple[Group, ...], evaluate: Evaluate, estimate: Evaluate | None, *, limit: Limit, budget: float,
        total: int | None, clock: Callable[[], float], listen: Listen | None,
    ) -> None:  # fmt: skip
        self.groups, self.evaluate, self.estimate, self.limit, self.budget = groups, evaluate, estimate, limit, budget
        self.total = sum(group.multiply_adds for group in groups) if total is None else total
        self.clock, self.listen, self.began = clock, listen, clock()
        self.steps: list[Step] = []
        self.measured: dict[frozenset[str], Measurement] = {}
        self.took: dict[bool, list[float]] = {False: [], True: []}  # seconds of measurements, and of estimates
        self.effects: tuple[Effect, ...] = ()
        self.cut_short = False

    def elapsed(self) -> float:
        return self.clock() - self.began

    def may_go_on(self, reserve: int = 0) -> bool:
        """Whether the budget has room for one more evaluation and ``reserve`` others; remembers where it has not.

        Ask only where there is more to do.
        """
        within = self.elapsed() + reserve * self.per_evaluation() < self.budget
        self.cut_short |= not within
        return within

    def per_evaluation(self, *, estimated: bool = False) -> float:
        return sum(self.took[estimated]) / max(1, len(self.took[estimated]))

    def ask(self, phase: Phase, changed: Sequence[str], float_groups: frozenset[str], to_come: int) -> bool:
        """Whether that state passes; ``to_come``: about how many evaluations follow. Measured once only."""
        if float_groups not in self.measured:
            self.measured[float_groups] = self.evaluate(float_groups)
            self._log(phase, changed, float_groups, self.measured[float_groups], to_come)
        return passes(self.measured[float_groups], self.limit)

    def look(self, changed: Sequence[str], float_groups: frozenset[str], to_come: int) -> Measurement:
        """What that state is ranked by: an estimate, or the measurement where there is no cheaper one."""
        if self.estimate is None:
            self.ask("rank", changed, float_groups, to_come)
            return self.measured[float_groups]
        found = self.estimate(float_groups)
        self._log("rank", changed, float_groups, found, to_come, estimated=True)
        return found

    def failures(self) -> list[frozenset[str]]:
        return [state for state, found in self.measured.items() if not passes(found, self.limit)]

    def cost(self, names: Sequence[str]) -> int:
        """Multiply-adds of groups."""
        return sum(group.multiply_adds for group in self.groups if group.name in names)

    def in_order(self, names: frozenset[str]) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups if group.name in names)

    def _log(
        self, phase: Phase, changed: Sequence[str], float_groups: frozenset[str], found: Measurement, to_come: int,
        *, estimated: bool = False,
    ) -> None:  # fmt: skip
        accepted = passes(found, self.limit) and not estimated
        step = Step(
            number=len(self.steps) + 1, phase=phase, changed=tuple(changed), float_groups=self.in_order(float_groups),
            measurement=found, int8_share=self._int8_share(float_groups), seconds=self.elapsed(), accepted=accepted,
            reason=reason(found, self.limit), estimated=estimated,
        )  # fmt: skip
        self.took[estimated].append(step.seconds - (self.steps[-1].seconds if self.steps else 0))
        self.steps.append(step)
        if self.listen:
            ends = accepted and (phase in ("start", "rank") or not self.cost(step.float_groups))
            left = self.budget - step.seconds
            self.listen(step, 0.0 if ends else seconds_left(self.per_evaluation(estimated=estimated), to_come, left))

    def _int8_share(self, float_groups: frozenset[str]) -> float:
        quantized = self.cost([group.name for group in self.groups if group.name not in float_groups])
        return quantized / max(1, self.total)
