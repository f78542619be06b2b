"""Determines the engines, batch sizes and streams of a benchmark on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines import ExecutionOptions, streams_on_cpu
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.formatting import each_reason
from misgnet_runtime.inference.comparison import NotRun
from misgnet_runtime.inference.selection import open_detector, ranked_here
from misgnet_runtime.inference.throughput import Task, task_of
from misgnet_runtime.machine import usable_cores
from misgnet_runtime.measure.bench.options import BenchOptions
from misgnet_runtime.storage.schema import Struct

_LARGEST_BATCH = 16  # largest batch measured by default


class RunsHere(Struct, frozen=True):
    """An engine that is measured, and its device."""

    # Name of the engine.
    engine: str
    precision: str
    # Device that runs the engine.
    device: str


@dataclass(frozen=True)
class BenchMatrix:
    """The engines and settings of a benchmark; every engine is measured at every batch and number of streams."""

    runs: list[RunsHere]
    not_run: list[NotRun]
    batches: list[int]
    streams: list[int]

    def settings(self) -> list[tuple[int, int]]:
        """Returns all (batch, streams) in the order of measurement."""
        return [(batch, streams) for batch in self.batches for streams in self.streams]


def make_matrix(bundle: Bundle, options: BenchOptions, *, cores_here: Callable[[], int] = usable_cores) -> BenchMatrix:
    """Returns what to measure.

    Defaults: all engines that open here; batches 1, 4 and the largest up to 16; one stream, and one per core up to 4.
    ``cores_here`` returns the number of cores.

    Raises:
        UsageError: An engine is unknown, or a number is out of range.
        UnavailableError: A requested engine does not run here, or none does.
    """
    max_batch = bundle.manifest.interface.max_batch
    options.check(max_batch)
    requested = [bundle.engine_entry(name) for name in dict.fromkeys(options.engines)]
    runs, not_run = _opened(bundle, requested or ranked_here(bundle))
    if not_run and (requested or not runs):
        reasons = each_reason((engine.engine, engine.reason) for engine in not_run)
        which = "a requested engine does not run" if requested else "no engine runs"
        raise UnavailableError(f"{which} here: {reasons}")
    batches = options.batches or [size for size in (1, 4, min(max_batch, _LARGEST_BATCH)) if size <= max_batch]
    streams = options.streams or (1, streams_on_cpu(options.threads or cores_here()))
    return BenchMatrix(runs, not_run, sorted(set(batches)), sorted(set(streams)))


def _opened(bundle: Bundle, entries: list[EngineEntry]) -> tuple[list[RunsHere], list[NotRun]]:
    runs, not_run = [], []
    for entry in entries:
        try:
            with open_detector(bundle, entry.name, ExecutionOptions(streams=1)) as (detector, _, _):
                runs.append(RunsHere(entry.name, entry.precision, detector.engine.device))
        except UnavailableError as error:
            not_run.append(NotRun.of(entry.name, error))
    return runs, not_run


def tasks_of(bundle: Bundle, matrix: BenchMatrix, options: BenchOptions, batch: int, streams: int) -> list[Task]:
    """Returns the tasks of all engines at one setting."""
    entries = [bundle.engine_entry(engine.engine) for engine in matrix.runs]
    execution = ExecutionOptions(threads=options.threads, streams=streams, batch=batch)
    return [task_of(bundle, entry, execution, options.warm_up) for entry in entries]
