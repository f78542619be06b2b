"""A tuning of a bundle's engines, each kept as soon as it is known."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.errors import UsageError
from misgnet_runtime.formatting import timestamp
from misgnet_runtime.inference.tuned_settings import FORMAT, Found, Goal, Setting, Trial, Tuning
from misgnet_runtime.inference.tuned_store import keep, place_of, prepare
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.measure.bench.matrix import BenchOptions, NotRun, make_plan
from misgnet_runtime.measure.tuning.answers import AnswerCheck
from misgnet_runtime.measure.tuning.candidates import changes, default_setting
from misgnet_runtime.measure.tuning.search import Budget, Compare, Comparison, find_setting
from misgnet_runtime.storage.schema import Struct

MINUTES = 3.0  # an engine
_BUSY = 0.5  # threads that want to run
_GOALS: tuple[Goal, ...] = ("latency", "throughput")


class TuneReport(Struct, frozen=True):
    """What was tuned, where it is kept, and which engines do not run here."""

    bundle: str
    minutes: float
    tunings: list[Tuning]
    files: list[str]
    not_run: list[NotRun]


def tune_bundle(
    path: Path, engines: tuple[str, ...] = (), minutes: float = MINUTES, log: EventLog | None = None
) -> TuneReport:
    """Tune ``engines``, or all that run here, for about ``minutes`` each; each trial goes to ``log``.

    Raises UsageError for what cannot be meant, InputError for a bundle that is not what its manifest says,
    UnavailableError where no engine runs, and StorageError where nothing can be kept.
    """
    if not 0 < minutes < 24 * 60:
        raise UsageError(f"--minutes is {minutes:g}; it is above 0, and 3 will do")
    log = log or current()
    bundle = read_bundle(path)
    plan = make_plan(bundle, BenchOptions(engines=engines))
    entries = [bundle.engine_entry(run.engine) for run in plan.runs]
    prepare()
    if (load := os.getloadavg()[0]) > _BUSY:
        log.warning(f"{load:.1f} threads ran here in the last minute; what is found may suit a machine so busy only")
    tunings: list[Tuning] = []
    files: list[str] = []
    try:
        for entry in entries:
            tunings.append(tune_engine(bundle, entry, 60 * minutes, log))
            files.append(str(keep(tunings[-1])))
    except KeyboardInterrupt:
        kept = ", ".join(tuning.place.engine for tuning in tunings[: len(files)])
        raise KeyboardInterrupt(kept and f"what was tuned to its end is kept: {kept}") from None
    return TuneReport(str(path), minutes, tunings, files, plan.not_run)


def tune_engine(bundle: Bundle, entry: EngineEntry, seconds: float, log: EventLog) -> Tuning:
    """Find both goals' settings in about ``seconds``; nothing is kept yet.

    Raises UsageError where that was too little, else as opening the engine.
    """
    max_batch = bundle.manifest.interface.max_batch
    defaults = {goal: default_setting(entry, goal, max_batch) for goal in _GOALS}
    wanted = {goal: changes(entry, goal, max_batch) for goal in _GOALS}
    comparisons = sum(1 + sum(change(defaults[goal]) != defaults[goal] for change in wanted[goal]) for goal in _GOALS)
    budget = Budget(time.monotonic() + seconds, comparisons)
    found: dict[Goal, Found] = {}
    trials: list[Trial] = []
    for goal in _GOALS:
        check = AnswerCheck(bundle, entry, defaults[goal])
        compare = Comparison(bundle, entry, goal, budget, check.problem)
        found[goal], more = find_setting(defaults[goal], wanted[goal], partial(_logged, log, entry, compare))
        trials += more
    if trials and all(trial.gain is None for trial in trials):
        raise UsageError(f"nothing of {entry.name} could be measured, last: {trials[-1].remark}; give more --minutes")
    return Tuning(FORMAT, timestamp(), place_of(bundle, entry), found["latency"], found["throughput"], trials)


def _logged(
    log: EventLog, entry: EngineEntry, compare: Compare, setting: Setting, other: Setting, always: bool
) -> Trial:
    trial = compare(setting, other, always)
    log.info(f"{entry.name}, {trial.goal}: {setting.words()}: {trial.verdict()}")
    return trial
