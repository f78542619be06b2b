"""Runs a batch job from the table of scenes to the results table, on this machine or on a Ray cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.bundle.signing.policy import required_elsewhere
from misgnet_runtime.engines import ExecutionOptions, is_on_cpu, streams_on_cpu
from misgnet_runtime.errors import ScenesFailed, UsageError
from misgnet_runtime.formatting import now, plural
from misgnet_runtime.inference.selection import ranked_here
from misgnet_runtime.jobs.batch.driver import Driver, Listener
from misgnet_runtime.jobs.batch.options import BatchOptions
from misgnet_runtime.jobs.batch.pool import Pool, ProcessPool
from misgnet_runtime.jobs.batch.record import SCHEMA, Done, Failed, Record, Started, open_record
from misgnet_runtime.jobs.batch.results import write_results
from misgnet_runtime.jobs.batch.row import Scene
from misgnet_runtime.jobs.batch.table import read_table
from misgnet_runtime.jobs.batch.worker import Setup, Task, discard_work
from misgnet_runtime.machine import usable_cores
from misgnet_runtime.raster.remote.address import hidden

INTERRUPTED = "finished scenes are kept; rerun the command to resume"
_NAMED = 10  # failed scenes named in the error message; the results table has all of them


@dataclass(frozen=True)
class BatchReport:
    """Outcome of a batch run over one shard."""

    # Number of finished scenes.
    done: int
    # Number of those that earlier runs finished.
    earlier: int
    # Error messages by scene id.
    failed: dict[str, str]
    # Results tables that were written.
    tables: list[Path]

    def line(self, output: Path) -> str:
        """Returns a one-line summary."""
        earlier = f" ({self.earlier} by earlier runs)" if self.earlier else ""
        tables = ", ".join(path.name for path in self.tables)
        return f"{output}: {plural(self.done, 'scene')} done{earlier}, {len(self.failed)} failed; {tables}"

    def raise_failed(self) -> None:
        """Raises ScenesFailed with the ids of failed scenes, if there are any."""
        if self.failed:
            some = [f"{name} ({message})" for name, message in list(self.failed.items())[:_NAMED]]
            more = f", and {len(self.failed) - _NAMED} more" if len(self.failed) > _NAMED else ""
            raise ScenesFailed(
                f"{len(self.failed)} of {plural(self.done + len(self.failed), 'scene')} failed: {', '.join(some)}"
                f"{more}; fix them and rerun the command; finished scenes are skipped"
            )


def run_batch(bundle_path: Path, table: Path, output: Path, options: BatchOptions, listener: Listener) -> BatchReport:
    """Processes the scenes of ``table`` into ``output`` and skips finished ones.

    A failed scene does not stop the others; its reason is in the report and in the results table. Failed scenes of an
    earlier run are retried. Scenes whose files or options have changed are processed again.

    Args:
        bundle_path: Bundle folder.
        table: CSV file of scenes.
        output: Output folder, created if missing.
        options: How scenes are distributed, and their common options.
        listener: Receives log messages, outcomes and progress.

    Raises:
        InputError: The table or the bundle is invalid.
        UsageError: Another run is active, or the output folder holds the results of another bundle.
        UnavailableError: No worker can be started.
        StorageError: A file cannot be written.
    """
    options.check()
    output = Path(os.path.realpath(output))
    scenes = options.shard.of(read_table(table, options.common(), output))
    _require_remote(scenes, options)
    if kept := scenes and ", ".join(scenes[0].kept):
        listener.log.info(f"columns that are not options are copied into the results: {kept}")
    bundle = read_bundle(bundle_path)
    with open_record(output, options.shard) as record:
        tasks, earlier = _due(scenes, bundle, record, output, options)
        try:
            if tasks:
                _work(tasks, bundle, output, record, options=options, listener=listener)
        finally:
            tables = write_results(output, options.shard, scenes, record)
        ends = {scene.id: record.ended[scene.id] for scene in scenes}
        failed = {name: end.message for name, end in ends.items() if isinstance(end, Failed)}
        return BatchReport(len(ends) - len(failed), earlier, failed, tables)


def _require_remote(scenes: Sequence[Scene], options: BatchOptions) -> None:
    """Raises UsageError if a raster is on a server, and the options do not allow a network."""
    found = [date for scene in scenes for date in (scene.before, scene.after) if isinstance(date, str)]
    if found and not options.remote.remote:
        raise UsageError(
            f"{plural(len(found), 'raster')} of the table are on servers ({hidden(found[0])}), and no network is used "
            "by default; allow it with --remote"
        )


def _due(
    scenes: Sequence[Scene], bundle: Bundle, record: Record, output: Path, options: BatchOptions
) -> tuple[list[Task], int]:
    """Returns the tasks that are due, and the number of scenes that are finished already."""
    digest = bundle.digest()
    if record.bundle not in (None, digest) and options.words.get("force") != "yes":
        raise UsageError(
            f"{output} holds results of bundle {str(record.bundle)[:16]}, but this bundle is {digest[:16]}; "
            "choose another -o, or process all scenes again with --force"
        )
    if record.bundle != digest:
        record.add(Started(now(), SCHEMA.format, digest))
    tasks = [Task(scene, scene.key(digest)) for scene in scenes]
    due = [task for task in tasks if not _is_done(task, record, output)]
    for scene in {task.scene.id for task in tasks} - {task.scene.id for task in due}:
        discard_work(output, scene)
    return due, len(tasks) - len(due)


def _is_done(task: Task, record: Record, output: Path) -> bool:
    end = record.ended.get(task.scene.id)
    if not isinstance(end, Done) or end.key != task.key or record.attempts[task.scene.id]:
        return False
    return _is_allowed(task.scene, end) and all((output / name).exists() for name in end.outputs)


def _is_allowed(scene: Scene, end: Done) -> bool:
    """Returns whether the unreadable share of both dates is within ``max_unreadable`` of this run."""
    shares = (end.figures.get(f"unreadable_share_{date}") or 0 for date in ("before", "after"))
    try:
        return 100 * max(shares) <= scene.options().max_unreadable
    except UsageError:  # the driver fails the scene and reports the reason
        return False


def _work(
    tasks: Sequence[Task], bundle: Bundle, output: Path, record: Record, *, options: BatchOptions, listener: Listener
) -> None:
    # Connecting to Ray installs its own SIGTERM handler, so the pool must be opened first.
    with _pool(bundle, output, options, listener) as pool, _interruptible():
        Driver(tasks, output, pool, record, retries=options.retries, listener=listener).run()


@contextmanager
def _pool(bundle: Bundle, output: Path, options: BatchOptions, listener: Listener) -> Iterator[Pool]:
    scene = Scene("x", Path(), Path(), options.words).options()
    setup = Setup(
        bundle=bundle.name.absolute(), digest=bundle.digest(), output=output, engine=scene, trust=required_elsewhere(),
        remote=options.remote,
    )  # fmt: skip
    if options.ray is None:
        workers = options.workers or 1
        cores = options.cores or (None if workers == 1 else max(1, usable_cores() // workers))
        listener.log.info(f"{plural(workers, 'worker')} on this machine")
        yield ProcessPool(_with_cores(setup, cores), workers)
        return
    from misgnet_runtime.jobs.batch.ray import RayPool, ray_cluster, ray_slots

    cores = options.cores or 1
    with ray_cluster(options.ray) as ray:
        slots = ray_slots(ray.cluster_resources(), runs_on_gpu(bundle, scene.engine), options.workers, cores)
        listener.log.info(
            f"{plural(slots.count, 'actor')} of {plural(slots.cores, 'core')} and {plural(slots.gpus, 'GPU')} each"
        )
        yield RayPool(ray, setup if slots.gpus else _with_cores(setup, cores), slots)


def runs_on_gpu(bundle: Bundle, engine: str) -> bool:
    """Returns whether the named engine runs on a GPU; for "auto", whether any engine of the bundle does."""
    entries = ranked_here(bundle) if engine == "auto" else [bundle.engine_entry(engine)]
    return not all(map(is_on_cpu, entries))


def _with_cores(setup: Setup, cores: int | None) -> Setup:
    """Returns ``setup`` with one thread per core of a worker, and as many streams as these cores support."""
    if cores is None:
        return setup
    return replace(setup, execution=ExecutionOptions(threads=cores, streams=streams_on_cpu(cores)))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Makes SIGTERM end the block like Ctrl-C, so that scenes in progress count as not attempted."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: its owner handles signals
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
