"""Compares engines and settings by speed: in alternating rounds beside a default, each in its own process."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import ExecutionOptions, batch_for_scenes, streams_for_scenes
from misgnet_runtime.errors import EngineError, MisgnetError, UnavailableError, UsageError
from misgnet_runtime.formatting import not_here
from misgnet_runtime.inference.throughput import Task, measure, task_of
from misgnet_runtime.inference.tuned import Measurement, Setting
from misgnet_runtime.log import EventLog
from misgnet_runtime.storage.schema import Struct

ROUNDS = 7
_PARALLEL = 4  # processes with an open engine at a time: the default and three others
_MIN_SECONDS = 0.5  # measuring time of each setting in all rounds; shorter times are meaningless
_WARM_UP_SECONDS = 3.0


@dataclass(frozen=True)
class Candidate:
    """An engine with a setting to measure."""

    entry: EngineEntry
    setting: Setting

    def label(self) -> str:
        """Returns the engine and its setting as text."""
        return f"{self.entry.name}, {self.setting.describe()}"


class NotRun(Struct, frozen=True):
    """An engine that is not measured, and why."""

    # Name of the engine.
    engine: str
    # Why it is not measured.
    reason: str
    # The same in a few words, if it cannot run on this machine; empty: it ran and failed.
    short: str = ""

    @classmethod
    def of(cls, engine: str, error: MisgnetError) -> NotRun:
        if isinstance(error, UnavailableError) and not isinstance(error, EngineError):
            return cls(engine, str(error), error.short)
        return cls(engine, str(error))


def lines_of_not_run(engines: Sequence[NotRun]) -> Iterator[str]:
    """Yields one line for the engines that cannot run on this machine, and one for each that ran and failed."""
    if elsewhere := [(each.engine, each.short) for each in engines if each.short]:
        yield not_here(elsewhere)
    yield from (f"{each.engine}: not measured: {each.reason}" for each in engines if not each.short)


def usual_setting(entry: EngineEntry, max_batch: int) -> Setting:
    """Returns the setting that is used for throughput without a tuning."""
    return Setting(streams_for_scenes(entry), min(batch_for_scenes(entry), max_batch))


def check_minutes(minutes: float) -> None:
    """Raises UsageError if a measuring time is not above 0 and below a day."""
    if not 0 < minutes < 24 * 60:
        raise UsageError(f"--minutes is {minutes:g}; expected a number above 0 and below {24 * 60}, such as 1")


def compare(
    bundle: Bundle, default: Candidate, others: Sequence[Candidate], seconds: float, log: EventLog
) -> tuple[list[Measurement], list[NotRun]]:
    """Measures all candidates in small groups, each in alternating rounds with the default.

    Args:
        bundle: The bundle of the candidates.
        default: The candidate that the others are compared with; measured in every group.
        others: The other candidates.
        seconds: Measuring time of all candidates together, not counting opening and warm-up.
        log: Receives the progress.

    Returns:
        The measurements, the default's first, and the candidates that could not be measured.

    Raises:
        MisgnetError: Nothing could be measured.
    """
    groups = [others[start : start + _PARALLEL - 1] for start in range(0, len(others), _PARALLEL - 1)] or [[]]
    share = max(_MIN_SECONDS, seconds / (len(others) + len(groups)))
    comparison = _Comparison(bundle, default, share)
    for number, group in enumerate(groups, 1):
        candidates = (default, *group)
        labels = "; ".join(each.label() for each in candidates)
        log.info(f"measuring for {share * len(candidates):.0f} s, {number} of {len(groups)}: {labels}")
        comparison.measure(group)
    return comparison.measurements(), comparison.failed


def choose(found: Sequence[Measurement], default: Measurement | None) -> Measurement:
    """Returns the fastest measurement that beats ``default`` by more than the spread of the rounds, or ``default``."""
    if default is not None:
        found = [default, *(each for each in found if is_faster(each, default))]
    return max(found, key=lambda each: each.ratio)


def is_faster(one: Measurement, other: Measurement) -> bool:
    """Returns whether ``one`` is faster than ``other`` by more than the spread of the rounds of either."""
    return one.ratio - other.ratio > max(one.spread, other.spread)


class _Comparison:
    """Measures candidates together with the default, each in its own process and for ``seconds``."""

    def __init__(self, bundle: Bundle, default: Candidate, seconds: float) -> None:
        self._bundle, self._default, self._seconds = bundle, default, seconds
        self._rounds: list[float] = []  # of the default
        self._found: list[Measurement] = []
        self.failed: list[NotRun] = []

    def measure(self, group: Sequence[Candidate]) -> None:
        """Measures ``group``. If that fails, measures its candidates one by one: one of them may exhaust the memory."""
        tasks = [self._task(each) for each in (self._default, *group)]
        try:
            default, *others = (timing.rounds for timing in measure(tasks, self._seconds, rounds=ROUNDS))
        except MisgnetError as error:
            if len(group) < 2:
                self.failed += [NotRun(each.label(), str(error)) for each in group or (self._default,)]
            else:
                for each in group:
                    self.measure([each])
            return
        self._rounds += default
        self._found += [_measurement(each, rounds, default) for each, rounds in zip(group, others, strict=True)]

    def measurements(self) -> list[Measurement]:
        """Returns the measurements, the default's first; raises MisgnetError if there are none."""
        if not self._rounds:
            raise MisgnetError(f"nothing could be measured: {self.failed[-1].reason}")
        return [_measurement(self._default, self._rounds, self._rounds), *self._found]

    def _task(self, candidate: Candidate) -> Task:
        execution = ExecutionOptions(streams=candidate.setting.streams, batch=candidate.setting.batch)
        return task_of(self._bundle, candidate.entry, execution, _WARM_UP_SECONDS)


def _measurement(candidate: Candidate, rounds: list[float], default: list[float]) -> Measurement:
    """Returns the measurement of a candidate. ``rounds``, ``default``: pairs/s of the alternating rounds."""
    first, median, third = np.percentile(np.divide(rounds, default), (25, 50, 75))
    return Measurement(
        engine=candidate.entry.name, setting=candidate.setting, pairs_per_second=statistics.median(rounds),
        ratio=float(median), spread=float(third - first), rounds=rounds,
    )  # fmt: skip
