"""Runs a series: encodes each date once, and compares it with the reference or the previous date by their features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import InputError, MisgnetError, UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.split_detector import SplitOpener, choose_split
from misgnet_runtime.jobs.journal import can_resume, discard_progress, was_renamed
from misgnet_runtime.jobs.scene.inputs import Date, check_readable, inspect_pair, warn_of_resolution
from misgnet_runtime.jobs.scene.run import INTERRUPTED, Run, SceneReport, refuse_outputs, refuse_unreadable, run_pair
from misgnet_runtime.jobs.series.comparison import compare
from misgnet_runtime.jobs.series.encoding import (
    Encoding,
    SplitEngine,
    inspect_encoding,
    make_features,
    open_split_engine,
)
from misgnet_runtime.jobs.series.features import SUFFIX, FeatureFile, open_features
from misgnet_runtime.jobs.series.finished import digest, is_done, refuse_tuned_since, tags
from misgnet_runtime.jobs.series.options import SeriesOptions
from misgnet_runtime.log import EventLog
from misgnet_runtime.raster.changes import check_libraries
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.reader import Pair, Raster, open_raster
from misgnet_runtime.raster.source import RasterFile, local_paths
from misgnet_runtime.raster.stac.locate import locate_dates
from misgnet_runtime.storage.atomic import refuse_inputs


@dataclass(frozen=True)
class Listener:
    """Receives the events of a series."""

    log: EventLog  # notes, warnings and errors
    finished: Callable[[Path, SceneReport], None]  # called for each complete change raster
    progress: Progress | None = None


@dataclass(frozen=True)
class _Comparison:
    """Two dates to compare."""

    before: Encoding
    after: Encoding
    run: Run
    done: bool  # whether all outputs exist and were written by an identical run
    warnings: list[str]  # that were logged about the dates


def run_series(
    bundle_path: Path,
    reference: RasterFile | Path | str,
    dates: Sequence[RasterFile | Path | str],
    folder: Path,
    *,
    options: SeriesOptions,
    listener: Listener,
    opener: SplitOpener = choose_split,
) -> None:
    """Writes ``folder``/DATE.tif for each of ``dates``: the change since ``reference`` or since the previous date.

    The features of the reference, or in consecutive mode those of the last two dates, stay in ``folder`` for later
    calls. A date is skipped if its outputs were written by an identical run. If a date fails, the others are still
    processed; then the first error is raised with the number of failures. ``opener`` opens the engine.

    Raises UsageError before the first date for invalid names and for a bundle that is not split; otherwise raises as
    :func:`predict_scene_files`.
    """
    folder = Path(os.path.realpath(folder))
    about_first, about_later = options.scene.dates
    about = [about_first, *[about_later] * len(dates)]
    first, *later = locate_dates([reference, *dates], about, options.scene.remote)
    _check_names(first, later, folder, options)
    options.scene.check_values()
    check_libraries(vector=options.vector, report=options.report)
    bundle = read_bundle(bundle_path)
    try:
        with open_raster(first, "before", pixels=bundle.manifest.interface.pixels) as raster:
            check_readable(raster, options.scene.max_unreadable)
            with open_split_engine(bundle, options.scene, opener) as engine:
                _Series(engine, raster, folder, options, listener).run(later)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(INTERRUPTED) from None


def _check_names(reference: RasterFile, dates: Sequence[RasterFile], folder: Path, options: SeriesOptions) -> None:
    """Raises UsageError if two dates have the same output, or an output is an input."""
    inputs = local_paths(reference, *dates, *([options.features] if options.features else []))
    taken: dict[str, RasterFile] = {}
    for date in [*([reference] if options.consecutive else []), *dates]:
        change, scene = options.of_date(folder, date)
        outputs = scene.outputs(change).values()
        refuse_inputs(outputs, inputs)
        for output in map(str, outputs):
            if output in taken:
                raise UsageError(f"{taken[output]} and {date} would both be written to {output}; rename one of them")
            taken[output] = date


def _log_pixels(date: Date, log: EventLog) -> None:
    for line in date.lines():
        log.info(f"{date.origin.name}: {line}")


class _Series:
    """One call of :func:`run_series`: inspects all dates, then runs each.

    ``reference`` stays open throughout. The other dates, possibly hundreds, are opened twice: to be inspected, so that
    problems of the last one are found before the first one is run, and to be run.
    """

    def __init__(
        self, engine: SplitEngine, reference: Raster, folder: Path, options: SeriesOptions, listener: Listener
    ) -> None:
        self._engine, self._reference, self._folder = engine, reference, folder
        self._options, self._listener, self._log = options, listener, listener.log
        self._failures: list[tuple[RasterFile, MisgnetError]] = []

    def run(self, dates: Sequence[RasterFile]) -> None:
        comparisons = self._inspect_all(dates)
        if not self._options.consecutive and not all(one.done for one in comparisons):
            # Every date needs the reference's features: a failure here ends the call.
            self._features(comparisons[0].before, self._reference)
        for comparison, following in zip_longest(comparisons, comparisons[1:]):
            with self._noted(comparison.after.date.origin):
                self._compare(comparison)
            if self._options.consecutive and following:
                self._discard({comparison.before, comparison.after} - {following.before})
        if self._options.discard_features and not self._failures:
            self._discard({encoding for last in comparisons[-1:] for encoding in (last.before, last.after)})
        self._raise_first(len(dates))

    def _inspect_all(self, dates: Sequence[RasterFile]) -> list[_Comparison]:
        """Returns the comparisons to run; records the failure of each date that cannot be compared."""
        found = []
        first, shared = inspect_encoding(self._engine, self._reference, self._options.scene), self._log.remembering()
        _log_pixels(first.date, self._log)
        self._warn_of_resolution(self._reference, shared)
        before: Encoding | None = first
        for source in dates:
            after = None
            with self._noted(source), self._opened(before or first, source) as pair:
                after = inspect_encoding(self._engine, pair.after, self._options.scene, pair.grid)
                log = self._log.remembering(shared.warnings or ())
                _log_pixels(after.date, log)
                if pair.after.source:  # else it has the reference's grid
                    self._warn_of_resolution(pair.after, log)
                if before is None:
                    raise InputError("it cannot be compared: the previous date failed")
                found.append(self._comparison(pair, before, after, log))
            if self._options.consecutive:
                before = after
        return found

    def _warn_of_resolution(self, raster: Raster, log: EventLog) -> None:
        warn_of_resolution(raster, self._engine.bundle.manifest.resolution, log)

    @contextmanager
    def _opened(self, before: Encoding, after: RasterFile) -> Iterator[Pair]:
        """Opens two dates on the reference's grid."""
        grid, pixels = Grid.of(self._reference.dataset), self._reference.pixels
        opening = partial(open_raster, grid=grid, align=self._options.scene.align, pixels=pixels)
        with ExitStack() as stack:
            first = self._reference
            if not before.first:
                first = stack.enter_context(opening(before.date.origin, "before"))
            yield Pair(first, stack.enter_context(opening(after, "after")), grid)

    def _comparison(self, pair: Pair, before: Encoding, after: Encoding, log: EventLog) -> _Comparison:
        inputs = inspect_pair(pair, before.date, after.date)
        for warning in inputs.warnings():
            log.warning(f"{after.date.origin.name}: {warning}")
        change, options = self._options.of_date(self._folder, after.date.origin)
        engine, outputs = self._engine, [*options.outputs(change).values()]
        run = Run(
            bundle=engine.bundle, inputs=inputs, options=options, outputs=outputs,
            interface=engine.detector.interface, entry=engine.entry, device=engine.device, streams=engine.streams,
            reason=engine.reason, tuned_batch=engine.detector.batch,
        )  # fmt: skip
        same = digest(run)
        started = can_resume(change)
        done = not started and not options.restart and is_done(outputs, same)
        if not started and not done and not options.force:
            refuse_tuned_since(run)
            refuse_outputs(outputs, options.force)
        if done:
            refuse_unreadable(change, self._options.scene.max_unreadable)
        return _Comparison(before, after, replace(run, tags=tags(run, same)), done, log.warnings or [])

    def _compare(self, comparison: _Comparison) -> None:
        run, output = comparison.run, comparison.run.outputs[0]
        if comparison.done:
            discard_progress(output)
            self._log.info(f"{output} is up to date (written by an identical run)")
            return
        detector, listener = self._engine.detector, self._listener
        with self._opened(comparison.before, comparison.after.date.origin) as pair:
            before = self._features(comparison.before, pair.before)
            after = self._features(comparison.after, pair.after) if self._options.consecutive else None
            run = replace(run, features=[stored.sha256 for stored in (before, after) if stored])
            report = run_pair(
                run, pair, lambda task: compare(task, detector, (before, after)),
                self._log.remembering(comparison.warnings), listener.progress,
            )  # fmt: skip
        discard_progress(output)
        self._listener.finished(output, report)

    def _features(self, encoding: Encoding, raster: Raster) -> FeatureFile:
        """Returns the stored features if they match the date, bundle and options; else encodes ``raster``."""
        path, given = self._path(encoding), self._is_given(encoding)
        if given or path.exists():
            found = open_features(path)
            changes = found.misfit(encoding.footer())
            if changes is None:
                if was_renamed(path):
                    discard_progress(path)
                encoding.tally(found.footer.holes)
                return found
            if given or not encoding.options.force:
                raise UsageError(
                    f"features {path} were made with {changes}; encode the raster again, or choose another -o"
                )
        made, resumed = make_features(encoding, raster, path, log=self._log, progress=self._listener.progress)
        if resumed:
            self._log.info(f"{path.name}: resumed at tile {resumed}")
        return made

    def _is_given(self, encoding: Encoding) -> bool:
        return encoding.first and self._options.features is not None

    def _path(self, encoding: Encoding) -> Path:
        given = self._options.features if encoding.first else None
        return given or self._folder / f"{encoding.date.origin.stem}{SUFFIX}"

    def _discard(self, encodings: set[Encoding]) -> None:
        """Removes dates' features from the folder if they equal those that this call would make."""
        for encoding in encodings:
            path = self._path(encoding)
            with suppress(InputError):  # there are none
                if not self._is_given(encoding) and open_features(path).misfit(encoding.footer()) is None:
                    path.unlink()

    @contextmanager
    def _noted(self, date: RasterFile) -> Iterator[None]:
        try:
            yield
        except MisgnetError as error:
            self._log.error(f"{date}: {error}; continuing with the other dates")
            self._failures.append((date, error))

    def _raise_first(self, count: int) -> None:
        if self._failures:
            date, error = self._failures[0]
            raise type(error)(
                f"{len(self._failures)} of {plural(count, 'date')} failed; the first is {date}: {error}"
            ) from error
