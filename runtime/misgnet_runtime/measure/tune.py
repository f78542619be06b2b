"""Finds the fastest engine of a bundle on this machine, and its best number of streams and batch size."""

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
    Scope,
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

MINUTES = 1.0  # per engine
ROUNDS = 7
_PARALLEL = 4  # processes with an open engine at a time: the default and three others
_MIN_SECONDS = 0.5  # measuring time of each setting in all rounds; shorter times are meaningless
_WARM_UP_SECONDS = 3.0
_BUSY_LOAD = 0.5  # load average above which the machine counts as busy


@dataclass(frozen=True)
class Candidate:
    """An engine with a setting to measure."""

    entry: EngineEntry
    setting: Setting

    def label(self) -> str:
        """Returns the engine and its setting as text."""
        return f"{self.entry.name}, {self.setting.describe()}"


class TuneReport(Struct, frozen=True):
    """Result of a tuning run."""

    # Folder of the bundle.
    bundle: str
    # Approximate measuring time per engine.
    minutes: float
    tuning: Tuning
    # File that the tuning is stored in.
    file: str
    # Engines and settings that could not be measured.
    not_run: list[NotRun]


def tune_bundle(
    path: Path, engines: Sequence[str] = (), minutes: float = MINUTES, log: EventLog | None = None
) -> TuneReport:
    """Measures the engines of a bundle and stores the fastest settings.

    Args:
        path: Bundle folder.
        engines: Names of the engines to measure (default: all that run on this machine).
        minutes: Approximate measuring time per engine.
        log: Receives progress and warnings (default: the current log).

    Raises:
        UsageError: ``minutes`` is out of range, or the bundle does not have a named engine.
        InputError: The bundle does not match its manifest.
        UnavailableError: A named engine does not run here, or none does.
        GateFailed: A named engine fails the golden tiles, or all do.
        StorageError: The result cannot be stored.
    """
    if not 0 < minutes < 24 * 60:
        raise UsageError(f"--minutes is {minutes:g}; expected a number above 0 and below {24 * 60}, such as 1")
    log = log or current()
    bundle = read_bundle(path)
    entries = _select_engines(bundle, engines)
    prepare()
    _warn_if_busy(log)
    candidates, not_run = _find_candidates(bundle, entries, required=bool(engines))
    measurements, failed = _measure(bundle, candidates, 60 * minutes, log)
    tuning = _tuning_of(bundle, measurements)
    return TuneReport(str(path), minutes, tuning, str(keep(tuning)), not_run + failed)


def settings_of(entry: EngineEntry, max_batch: int) -> list[Setting]:
    """Returns the settings to measure: one stream, as many as suit the device, and on a GPU its profiles' batches."""
    if is_on_cpu(entry):
        streams, batches = {1, streams_for_scenes(entry)}, {1, batch_for_scenes(entry)}
    else:
        streams = {1, streams_for_scenes(entry), MOST_STREAMS}
        batches = {1, batch_for_scenes(entry), *(size for each in entry.plan_profiles for size in each.batches)}
    sizes = sorted({min(batch, max_batch) for batch in batches})
    return [Setting(number, size) for size in sizes for number in sorted(streams)]


def usual_setting(entry: EngineEntry, max_batch: int) -> Setting:
    """Returns the setting that is used for throughput without a tuning."""
    return Setting(streams_for_scenes(entry), min(batch_for_scenes(entry), max_batch))


def choose(found: Sequence[Measurement], default: Measurement | None) -> Measurement:
    """Returns the fastest measurement that beats ``default`` by more than the spread of the rounds, or ``default``."""
    if default is not None:
        found = [default, *(each for each in found if each.ratio - default.ratio > max(each.spread, default.spread))]
    return max(found, key=lambda each: each.ratio)


def _select_engines(bundle: Bundle, engines: Sequence[str]) -> list[EngineEntry]:
    """Returns the named engines (default: all), in the order used without a tuning."""
    requested = {bundle.engine_entry(name).name for name in engines}
    return [entry for entry in ranked_here(bundle) if not requested or entry.name in requested]


def _warn_if_busy(log: EventLog) -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
    if load > _BUSY_LOAD:
        log.warning(f"the load average of the last minute is {load:.1f}; results may not apply to an idle machine")


def _find_candidates(
    bundle: Bundle, entries: list[EngineEntry], *, required: bool
) -> tuple[list[Candidate], list[NotRun]]:
    """Returns the candidates to measure, and the engines that do not run here or fail the golden tiles.

    Raises:
        UnavailableError: ``required`` is set and an engine does not run here, or none does.
        GateFailed: ``required`` is set and an engine fails the golden tiles, or all do.
    """
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
    if refused and (required or not found):
        kind = next((type(e) for e in refused.values() if isinstance(e, GateFailed)), UnavailableError)
        reasons = "; ".join(f"{name}: {error}" for name, error in refused.items())
        which = "a requested engine cannot" if required else "no engine can"
        raise kind(f"{which} be measured here: {reasons}")
    return found, [NotRun(name, str(error)) for name, error in refused.items()]


def _measure(
    bundle: Bundle, candidates: list[Candidate], seconds: float, log: EventLog
) -> tuple[list[Measurement], list[NotRun]]:
    """Measures all candidates in small groups, each in alternating rounds with the default.

    ``seconds``: measuring time per engine.
    """
    usual = usual_setting(candidates[0].entry, bundle.manifest.interface.max_batch)
    default = next(each for each in candidates if each.setting == usual)  # of the first engine
    others = [each for each in candidates if each is not default]
    groups = [others[start : start + _PARALLEL - 1] for start in range(0, len(others), _PARALLEL - 1)] or [[]]
    engines = len({each.entry.name for each in candidates})
    share = max(_MIN_SECONDS, seconds * engines / (len(others) + len(groups)))
    comparison = _Comparison(bundle, default, share)
    for number, group in enumerate(groups, 1):
        log.info(f"measuring, {number} of {len(groups)}: {'; '.join(each.label() for each in (default, *group))}")
        comparison.measure(group)
    return comparison.measurements(), comparison.failed


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


def _tuning_of(bundle: Bundle, measurements: Sequence[Measurement]) -> Tuning:
    """Returns the tuning.

    For throughput: the fastest setting of each engine, and the fastest engine of these. For latency: the fastest engine
    with one stream and batch 1.
    """
    many: dict[str, Measurement] = {}
    for name in dict.fromkeys(each.engine for each in measurements):  # the default's first
        usual = usual_setting(bundle.engine_entry(name), bundle.manifest.interface.max_batch)
        own = [each for each in measurements if each.engine == name]
        many[name] = choose(own, next((each for each in own if each.setting == usual), None))
    single = {each.engine: each for each in measurements if each.setting == ONE_PAIR} or many
    usual_engine = measurements[0].engine
    return Tuning(
        format=FORMAT, created=timestamp(), place=Scope.of(bundle), gpu=gpu_of(bundle), libraries=libraries_of(bundle),
        latency=choose(list(single.values()), single.get(usual_engine)).engine,
        throughput=choose(list(many.values()), many[usual_engine]).engine,
        settings={name: each.setting for name, each in many.items()}, measurements=list(measurements),
    )  # fmt: skip
