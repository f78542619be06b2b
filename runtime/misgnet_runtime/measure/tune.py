"""Finds the fastest engine of a bundle on this machine, and its best number of streams and batch size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from misgnet_runtime.bundle.golden import golden_of
from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.engines import MOST_STREAMS, batch_for_scenes, is_on_cpu, streams_for_scenes
from misgnet_runtime.errors import GateFailed, MisgnetError, UnavailableError
from misgnet_runtime.formatting import each_reason, timestamp
from misgnet_runtime.inference.comparison import Candidate, NotRun, check_minutes, choose, compare, usual_setting
from misgnet_runtime.inference.selection import ranked_here
from misgnet_runtime.inference.self_test import check_golden
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
from misgnet_runtime.measure.sensors.clocks import warn_if_clocks_float
from misgnet_runtime.storage.schema import Struct

MINUTES = 1.0  # per engine
_BUSY_LOAD = 0.5  # load average above which the machine counts as busy


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
    check_minutes(minutes)
    log = log or current()
    bundle = read_bundle(path)
    entries = _select_engines(bundle, engines)
    prepare()
    _warn_if_busy(log)
    warn_if_clocks_float(log)
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
        reasons = each_reason((name, str(error)) for name, error in refused.items())
        which = "a requested engine cannot" if required else "no engine can"
        raise kind(f"{which} be measured here: {reasons}")
    return found, [NotRun.of(name, error) for name, error in refused.items()]


def _measure(
    bundle: Bundle, candidates: list[Candidate], seconds: float, log: EventLog
) -> tuple[list[Measurement], list[NotRun]]:
    """Measures all candidates beside the first engine's usual setting; ``seconds``: measuring time per engine."""
    usual = usual_setting(candidates[0].entry, bundle.manifest.interface.max_batch)
    default = next(each for each in candidates if each.setting == usual)  # of the first engine
    others = [each for each in candidates if each is not default]
    return compare(bundle, default, others, seconds * len({each.entry.name for each in candidates}), log)


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
