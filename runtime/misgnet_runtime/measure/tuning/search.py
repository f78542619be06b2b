"""The search for an engine's best setting: one change after the other, each measured beside the best so far."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import ExecutionOptions
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.inference.throughput import Task, measure, task_of
from misgnet_runtime.inference.tuned_settings import Found, Goal, Setting, Trial
from misgnet_runtime.measure.tuning.candidates import Change

ROUNDS = 7
_LEAST_SECONDS = 0.5  # of each side in all rounds; with less nothing is learnt
_WARM_UP_SECONDS = 3.0

# A setting and the one that it would replace; and whether the trial is held even where the time is over.
Compare = Callable[[Setting, Setting, bool], Trial]


def find_setting(default: Setting, changes: Iterable[Change], compare: Compare) -> tuple[Found, list[Trial]]:
    """The best setting, and all that was tried.

    What was taken in the end is measured beside the default once more: the best of many trials may be a lucky one.
    """
    best, trials = default, list[Trial]()
    for change in changes:
        if (candidate := change(best)) != best:
            trials.append(compare(candidate, best, False))
            best = candidate if trials[-1].taken else best
    if best == default:
        return Found(default), trials
    trials.append(last := compare(best, default, True))
    return Found(best, last.gain or 0.0) if last.taken else Found(default), trials


@dataclass
class Budget:
    """Seconds shared out to comparisons. What one takes beside its rounds is learnt from the one before."""

    end: float
    comparisons: int
    overhead: float = 0.0

    def is_over(self) -> bool:
        """Whether one more comparison would take longer than is left."""
        return self.end - time.monotonic() < self.overhead + 2 * _LEAST_SECONDS

    def share(self) -> float:
        """Seconds to measure each side of the next comparison."""
        left = (self.end - time.monotonic()) / max(1, self.comparisons)
        self.comparisons -= 1
        return max(_LEAST_SECONDS, (left - self.overhead) / 2)


@dataclass(frozen=True)
class Comparison:
    """Measures two settings of an engine side by side, each in a process of its own.

    ``problem``: why the answers under a setting are not what they must be, asked of what would be taken.
    """

    bundle: Bundle
    entry: EngineEntry
    goal: Goal
    budget: Budget
    problem: Callable[[Setting], str | None]

    def __call__(self, setting: Setting, against: Setting, always: bool) -> Trial:
        """A trial, taken where the rounds' ratios are above 1 by more than they spread and the answers stay."""
        if self.budget.is_over() and not always:
            return Trial(self.goal, setting, against, remark="not measured: no time was left")
        seconds, start = self.budget.share(), time.monotonic()
        try:
            tasks = [self._task(side) for side in (setting, against)]
            ours, theirs = (timing.rounds for timing in measure(tasks, seconds, rounds=ROUNDS))
        except MisgnetError as error:  # too little memory, or what the library does not know
            return Trial(self.goal, setting, against, remark=f"not measured: {error}")
        finally:
            self.budget.overhead = time.monotonic() - start - 2 * seconds
        return self._judge(setting, against, ours, theirs)

    def _judge(self, setting: Setting, against: Setting, ours: list[float], theirs: list[float]) -> Trial:
        gain, spread = gain_and_spread(ours, theirs)
        problem = self.problem(setting) if gain > spread else None
        return Trial(
            self.goal, setting, against, statistics.median(ours), statistics.median(theirs), gain, spread,
            taken=gain > spread and problem is None, remark=problem or "",
        )  # fmt: skip

    def _task(self, setting: Setting) -> Task:
        execution = ExecutionOptions(threads=setting.threads, streams=setting.streams, batch=setting.batch)
        return task_of(self.bundle, self.entry, execution, _WARM_UP_SECONDS, settings=setting.engine)


def gain_and_spread(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Of the speeds of rounds in turn: median of the ratios less 1, and from their first to their third quartile."""
    first, median, third = np.percentile(np.divide(ours, theirs), (25, 50, 75))
    return float(median) - 1, float(third - first)
