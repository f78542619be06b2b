"""Which engine of a bundle is fastest here, in how many streams and at what batch."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misgnet_runtime.bundle.golden import golden_of
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.engines import (
    MOST_STREAMS,
    ExecutionOptions,
    batch_for_scenes,
    is_on_cpu,
    streams_for_scenes,
)
from misgnet_runtime.errors import GateFailed, MisgnetError, UnavailableError, UsageError
from misgnet_runtime.formatting import timestamp
from misgnet_runtime.inference.selection import ranked_here
from misgnet_runtime.inference.self_test import check_golden
from misgnet_runtime.inference.throughput import Task, measure, task_of
from misgnet_runtime.inference.tuned import (
    FORMAT,
    ONE_PAIR,
    Measurement,
    Place,
    Setting,
    Tuning,
    gpu_of,
    keep,
    libraries_of,
    prepare,
)
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.measure.bench.matrix import NotRun
from misgnet_runtime.storage.schema import Struct

MINUTES = 1.0  # for each engine
ROUNDS = 7
_TOGETHER = 4  # processes that each hold an engine open: the default and three others
_LEAST_SECONDS = 0.5  # of each setting in all rounds; with less nothing is learnt
_WARM_UP_SECONDS = 3.0
_BUSY = 0.5  # threads that want to run


@dataclass(frozen=True)
class Candidate:
    """An engine with one setting."""

    entry: EngineEntry
    setting: Setting

    def words(self) -> str:
        """For a person."""
        return f"{self.entry.name}, {self.setting.words()}"


class TuneReport(Struct, frozen=True):
    """What was measured, where it is kept, and what could not be measured and why."""

    bundle: str
    minutes: float
    tuning: Tuning
    file: str
    not_run: list[NotRun]


def tune_bundle(
    path: Path, engines: Sequence[str] = (), minutes: float = MINUTES, log: EventLog | None = None
) -> TuneReport:
    """Measure ``engines``, or all that run here, for about ``minutes`` each, and keep which are fastest.

    Raises:
        UsageError: ``minutes`` is out of range, or the bundle has no engine of a name.
        InputError: The bundle is not what its manifest says.
        UnavailableError: An engine of ``engines`` does not run here, or none does.
        GateFailed: An engine of ``engines``, or every one, misses the golden tiles.
        StorageError: Nothing can be kept.
    """
    if not 0 < minutes < 24 * 60:
        raise UsageError(f"--minutes is {minutes:g}; it is above 0, and 1 will do")
    log = log or current()
    bundle = read_bundle(path)
    entries = _asked(bundle, engines)
    prepare()
    _warn_of_company(log)
    candidates, not_run = _that_run(bundle, entries, all_of_them=bool(engines))
    measurements, failed = _measure(bundle, candidates, 60 * minutes, log)
    tuning = _tuning_of(bundle, measurements)
    return TuneReport(str(path), minutes, tuning, str(keep(tuning)), not_run + failed)


def settings_of(entry: EngineEntry, max_batch: int) -> list[Setting]:
    """What is measured of an engine: one stream, as many as its device feeds, and on a GPU its plan's batches."""
    if is_on_cpu(entry):
        streams, batches = {1, streams_for_scenes(entry)}, {1, batch_for_scenes(entry)}
    else:
        streams = {1, streams_for_scenes(entry), MOST_STREAMS}
        batches = {1, batch_for_scenes(entry), *entry.batches}
    sizes = sorted({min(batch, max_batch) for batch in batches})
    return [Setting(number, size) for size in sizes for number in sorted(streams)]


def usual_setting(entry: EngineEntry, max_batch: int) -> Setting:
    """How an engine is run for many where nothing was tuned."""
    return Setting(streams_for_scenes(entry), min(batch_for_scenes(entry), max_batch))


def choose(found: Sequence[Measurement], default: Measurement | None) -> Measurement:
    """The fastest of those that are faster than ``default`` by more than the rounds spread; it, if none is."""
    if default is not None:
        found = [default, *(each for each in found if each.ratio - default.ratio > max(each.spread, default.spread))]
    return max(found, key=lambda each: each.ratio)


def _asked(bundle: Bundle, engines: Sequence[str]) -> list[EngineEntry]:
    """All engines of ``bundle``, or those with the names, in the order that is usual without a tuning."""
    asked = {bundle.engine_entry(name).name for name in engines}
    return [entry for entry in ranked_here(bundle) if not asked or entry.name in asked]


def _warn_of_company(log: EventLog) -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
    if load > _BUSY:
        log.warning(f"{load:.1f} threads ran here in the last minute; what is found may suit a machine so busy only")


def _that_run(bundle: Bundle, entries: list[EngineEntry], *, all_of_them: bool) -> tuple[list[Candidate], list[NotRun]]:
    """What is to be measured, and the engines that do not run here or miss the golden tiles at a batch."""
    golden, max_batch = golden_of(bundle), bundle.manifest.interface.max_batch
    found: list[Candidate] = []
    refused: dict[str, MisgnetError] = {}
    for entry in entries:
        settings = settings_of(entry, max_batch)
        try:
            for batch in dict.fromkeys(setting.batch for setting in settings):
                check_golden(bundle, entry, golden, batch)
        except (UnavailableError, GateFailed) as error:
            refused[entry.name] = error
        else:
            found += [Candidate(entry, setting) for setting in settings]
    if refused and (all_of_them or not found):
        kind = next((type(e) for e in refused.values() if isinstance(e, GateFailed)), UnavailableError)
        reasons = "; ".join(f"{name}: {error}" for name, error in refused.items())
        which = "an engine that was asked for cannot" if all_of_them else "no engine can"
        raise kind(f"{which} be measured here: {reasons}")
    return found, [NotRun(name, str(error)) for name, error in refused.items()]


def _measure(
    bundle: Bundle, candidates: list[Candidate], seconds: float, log: EventLog
) -> tuple[list[Measurement], list[NotRun]]:
    """All candidates, a few at once, each time in alternating rounds with the default; ``seconds``: for each engine."""
    usual = usual_setting(candidates[0].entry, bundle.manifest.interface.max_batch)
    default = next(each for each in candidates if each.setting == usual)  # of the first engine
    others = [each for each in candidates if each is not default]
    groups = [others[start : start + _TOGETHER - 1] for start in range(0, len(others), _TOGETHER - 1)] or [[]]
    engines = len({each.entry.name for each in candidates})
    share = max(_LEAST_SECONDS, seconds * engines / (len(others) + len(groups)))
    comparison = _Comparison(bundle, default, share)
    for number, group in enumerate(groups, 1):
        log.info(f"measuring, {number} of {len(groups)}: {'; '.join(each.words() for each in (default, *group))}")
        comparison.measure(group)
    return comparison.measurements(), comparison.failed


class _Comparison:
    """Measures candidates beside the default, each in a process of its own, for ``seconds`` each."""

    def __init__(self, bundle: Bundle, default: Candidate, seconds: float) -> None:
        self._bundle, self._default, self._seconds = bundle, default, seconds
        self._rounds: list[float] = []  # of the default
        self._found: list[Measurement] = []
        self.failed: list[NotRun] = []

    def measure(self, group: Sequence[Candidate]) -> None:
        """Measure ``group``; where that fails, one after the other: a batch too large ends its own process only."""
        tasks = [self._task(each) for each in (self._default, *group)]
        try:
            default, *others = (timing.rounds for timing in measure(tasks, self._seconds, rounds=ROUNDS))
        except MisgnetError as error:
            if len(group) < 2:
                self.failed += [NotRun(each.words(), str(error)) for each in group or (self._default,)]
            else:
                for each in group:
                    self.measure([each])
            return
        self._rounds += default
        self._found += [_measurement(each, rounds, default) for each, rounds in zip(group, others, strict=True)]

    def measurements(self) -> list[Measurement]:
        """The default's, then the others'; MisgnetError where there are none."""
        if not self._rounds:
            raise MisgnetError(f"nothing could be measured: {self.failed[-1].reason}")
        return [_measurement(self._default, self._rounds, self._rounds), *self._found]

    def _task(self, candidate: Candidate) -> Task:
        execution = ExecutionOptions(streams=candidate.setting.streams, batch=candidate.setting.batch)
        return task_of(self._bundle, candidate.entry, execution, _WARM_UP_SECONDS)


def _measurement(candidate: Candidate, rounds: list[float], default: list[float]) -> Measurement:
    """``rounds``, ``default``: pairs/s of rounds in turn."""
    first, median, third = np.percentile(np.divide(rounds, default), (25, 50, 75))
    return Measurement(
        engine=candidate.entry.name, setting=candidate.setting, pairs_per_second=statistics.median(rounds),
        ratio=float(median), spread=float(third - first), rounds=rounds,
    )  # fmt: skip


def _tuning_of(bundle: Bundle, measurements: Sequence[Measurement]) -> Tuning:
    """For many: each engine's fastest setting, then the fastest of these; for one pair: the fastest in one stream."""
    many: dict[str, Measurement] = {}
    for name in dict.fromkeys(each.engine for each in measurements):  # the default's first
        usual = usual_setting(bundle.engine_entry(name), bundle.manifest.interface.max_batch)
        own = [each for each in measurements if each.engine == name]
        many[name] = choose(own, next((each for each in own if each.setting == usual), None))
    single = {each.engine: each for each in measurements if each.setting == ONE_PAIR} or many
    usual_engine = measurements[0].engine
    return Tuning(
        format=FORMAT, created=timestamp(), place=Place.of(bundle), gpu=gpu_of(bundle), libraries=libraries_of(bundle),
        latency=choose(list(single.values()), single.get(usual_engine)).engine,
        throughput=choose(list(many.values()), many[usual_engine]).engine,
        settings={name: each.setting for name, each in many.items()}, measurements=list(measurements),
    )  # fmt: skip
