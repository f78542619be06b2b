"""What a benchmark is asked for, and what of it this bundle and this machine have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import ExecutionOptions, streams_on_cpu
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.inference.selection import open_detector, ranked_here
from misgnet_runtime.inference.throughput import ROUNDS, WARM_UP_SECONDS, Task, task_of
from misgnet_runtime.machine import usable_cores
from misgnet_runtime.storage.schema import Struct

_LARGEST_BATCH = 16  # of those that are measured without being asked for


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Empty ``engines``, ``batches`` and ``streams`` stand for what :func:`make_plan` chooses.

    ``seconds``: of each engine at each setting, in all ``rounds`` together; ``warm_up``: the most seconds before that;
    ``threads`` compute at once, all usable cores without; ``scene``: a pair of GeoTIFFs.
    """

    engines: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    streams: tuple[int, ...] = ()
    threads: int | None = None
    seconds: float = 5.0
    rounds: int = ROUNDS
    warm_up: float = WARM_UP_SECONDS
    scene: tuple[Path, Path] | None = None

    def check(self, max_batch: int) -> None:
        """UsageError for numbers that cannot be meant, or a batch that the bundle's engines do not take."""
        whole = {"--rounds": [self.rounds], "--batch": self.batches, "--streams": self.streams}
        whole["--threads"] = [] if self.threads is None else [self.threads]
        for option, numbers in whole.items():
            if any(number < 1 for number in numbers):
                raise UsageError(f"{option} is {min(numbers)}; it is 1 or more")
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds is {self.seconds}; it is above 0")
        if not 0 <= self.warm_up < math.inf:
            raise UsageError(f"--warm-up is {self.warm_up}; it is 0 or more seconds")
        if self.batches and max(self.batches) > max_batch:
            raise UsageError(f"--batch is {max(self.batches)}; the engines of this bundle take at most {max_batch}")


class RunsHere(Struct, frozen=True):
    """An engine that is measured, and the device that it opened on."""

    engine: str
    precision: str
    device: str


class NotRun(Struct, frozen=True):
    """An engine that is not measured, and what this machine lacks for it."""

    engine: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Every engine is measured at every batch with every number of streams."""

    runs: list[RunsHere]
    not_run: list[NotRun]
    batches: list[int]
    streams: list[int]

    def settings(self) -> list[tuple[int, int]]:
        """(batch, streams), in the order in which they are measured."""
        return [(batch, streams) for batch in self.batches for streams in self.streams]


def make_plan(bundle: Bundle, options: BenchOptions) -> Plan:
    """Without wishes: all engines that open here; batches 1, 4 and the largest to 16; one stream, and one a core to 4.

    Raises UsageError for an unknown engine or numbers that do not fit, UnavailableError where an engine that was
    asked for does not run here, or none does.
    """
    max_batch = bundle.manifest.interface.max_batch
    options.check(max_batch)
    asked = [bundle.engine_entry(name) for name in dict.fromkeys(options.engines)]
    runs, not_run = _opened(bundle, asked or ranked_here(bundle))
    if not_run and (asked or not runs):
        reasons = "; ".join(f"{engine.engine}: {engine.reason}" for engine in not_run)
        which = "an engine that was asked for does not run" if asked else "no engine runs"
        raise UnavailableError(f"{which} here: {reasons}")
    batches = options.batches or [size for size in (1, 4, min(max_batch, _LARGEST_BATCH)) if size <= max_batch]
    streams = options.streams or (1, streams_on_cpu(options.threads or usable_cores()))
    return Plan(runs, not_run, sorted(set(batches)), sorted(set(streams)))


def _opened(bundle: Bundle, entries: list[EngineEntry]) -> tuple[list[RunsHere], list[NotRun]]:
    runs, not_run = [], []
    for entry in entries:
        try:
            with open_detector(bundle, entry.name, ExecutionOptions(streams=1)) as (detector, _, _):
                runs.append(RunsHere(entry.name, entry.precision, detector.engine.device))
        except UnavailableError as error:
            not_run.append(NotRun(entry.name, str(error)))
    return runs, not_run


def tasks_of(bundle: Bundle, plan: Plan, options: BenchOptions, batch: int, streams: int) -> list[Task]:
    """All engines at one setting."""
    entries = [bundle.engine_entry(engine.engine) for engine in plan.runs]
    execution = ExecutionOptions(threads=options.threads, streams=streams, batch=batch)
    return [task_of(bundle, entry, execution, options.warm_up) for entry in entries]
