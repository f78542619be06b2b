"""A reference and every new date, or each date and the one before: encoded once, and compared by their features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import InputError, MisgnetError, UsageError
from misgnet_runtime.jobs.journal import discard_progress, was_begun, was_named
from misgnet_runtime.jobs.scene.inputs import check_readable, inspect_pair
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
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.polygons import load_vector_libraries
from misgnet_runtime.raster.reader import Pair, Raster, open_raster
from misgnet_runtime.storage.atomic import refuse_inputs


@dataclass(frozen=True)
class Listener:
    """Who listens: notes, warnings and errors go to ``log``, each change raster that is complete to ``finished``."""

    log: EventLog
    finished: Callable[[Path, SceneReport], None]
    progress: Progress | None = None


@dataclass(frozen=True)
class _Comparison:
    """Two dates that are to be compared; ``done``: all outputs are there, of the very same run."""

    before: Encoding
    after: Encoding
    run: Run
    done: bool


def run_series(
    bundle_path: Path,
    reference: Path,
    dates: Sequence[Path],
    folder: Path,
    *,
    options: SeriesOptions,
    listener: Listener,
) -> None:
    """Write ``folder``/DATE.tif for each of ``dates``, the change since ``reference`` or since the date before.

    The reference's features are kept in ``folder``, or in consecutive mode those of the last two dates; a later call
    goes on with them. A date whose outputs are of the very same run is done. One that fails does not keep the others
    from being run; then the first error is raised in the end, with how many failed. Raises UsageError before the first
    date for names that cannot be meant, and for a bundle that is not split; else as :func:`predict_scene_files`.
    """
    folder = Path(os.path.realpath(folder))
    _check_names(reference, dates, folder, options)
    options.scene.check_values()
    if options.vector:
        load_vector_libraries()
    bundle = read_bundle(bundle_path)
    try:
        with open_raster(reference, "before") as raster:
            check_readable(raster, options.scene.max_unreadable)
            with open_split_engine(bundle, options.scene) as engine:
                _Series(engine, raster, folder, options, listener).run(dates)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(INTERRUPTED) from None


def _check_names(reference: Path, dates: Sequence[Path], folder: Path, options: SeriesOptions) -> None:
    """UsageError unless every date has outputs of its own, and none lies where an input does."""
    inputs = [reference, *dates, *([options.features] if options.features else [])]
    taken: dict[str, Path] = {}
    for date in [*([reference] if options.consecutive else []), *dates]:
        change, scene = options.of_date(folder, date)
        outputs = change, *scene.products().values()
        refuse_inputs(outputs, inputs)
        for output in map(str, outputs):
            if output in taken:
                raise UsageError(f"{taken[output]} and {date} would both become {output}; give one another name")
            taken[output] = date


class _Series:
    """One call's work: everything is inspected, then each date is run.

    ``reference`` stays open meanwhile. The other dates, of which there may be hundreds, are opened to be inspected, so
    that what is wrong with the last one is known before the first one is run, and again to be run.
    """

    def __init__(
        self, engine: SplitEngine, reference: Raster, folder: Path, options: SeriesOptions, listener: Listener
    ) -> None:
        self._engine, self._reference, self._folder = engine, reference, folder
        self._options, self._listener = options, listener
        self._failures: list[tuple[Path, MisgnetError]] = []

    def run(self, dates: Sequence[Path]) -> None:
        comparisons = self._inspect_all(dates)
        if not self._options.consecutive and not all(one.done for one in comparisons):
            # No date can be run without: what fails here ends the call.
            self._features(comparisons[0].before, self._reference)
        for comparison, following in zip_longest(comparisons, comparisons[1:]):
            with self._noted(comparison.after.date.path):
                self._compare(comparison)
            if self._options.consecutive and following:
                self._discard({comparison.before, comparison.after} - {following.before})
        if self._options.discard_features and not self._failures:
            self._discard({encoding for last in comparisons[-1:] for encoding in (last.before, last.after)})
        self._raise_first(len(dates))

    def _inspect_all(self, dates: Sequence[Path]) -> list[_Comparison]:
        """What is to be compared; a date that cannot be is noted."""
        found = []
        first = inspect_encoding(self._engine, self._reference, self._options.scene)
        self._listener.log.info(f"{first.date.path.name}: {first.date.scaling}")
        before: Encoding | None = first
        for path in dates:
            after = None
            with self._noted(path), self._opened(before or first, path) as pair:
                after = inspect_encoding(self._engine, pair.after, self._options.scene, pair.grid)
                self._listener.log.info(f"{path.name}: {after.date.scaling}")
                if before is None:
                    raise InputError("there is nothing to compare it with: the date before it failed")
                found.append(self._comparison(pair, before, after))
            if self._options.consecutive:
                before = after
        return found

    @contextmanager
    def _opened(self, before: Encoding, after: Path) -> Iterator[Pair]:
        """Two dates on the reference's grid."""
        grid, align = Grid.of(self._reference.dataset), self._options.scene.align
        with ExitStack() as stack:
            first = self._reference
            if not before.first:
                first = stack.enter_context(open_raster(before.date.path, "before", grid, align=align))
            yield Pair(first, stack.enter_context(open_raster(after, "after", grid, align=align)), grid)

    def _comparison(self, pair: Pair, before: Encoding, after: Encoding) -> _Comparison:
        inputs = inspect_pair(pair, before.date, after.date)
        for warning in inputs.warnings():
            self._listener.log.warning(f"{after.date.path.name}: {warning}")
        change, options = self._options.of_date(self._folder, after.date.path)
        engine, outputs = self._engine, [change, *options.products().values()]
        run = Run(
            bundle=engine.bundle, inputs=inputs, options=options, outputs=outputs,
            interface=engine.detector.interface, entry=engine.entry, device=engine.device, streams=engine.streams,
            reason=engine.reason, tuned_batch=engine.detector.batch,
        )  # fmt: skip
        same = digest(run)
        begun = was_begun(change)
        done = not begun and not options.restart and is_done(outputs, same)
        if not begun and not done and not options.force:
            refuse_tuned_since(run)
            refuse_outputs(outputs, options.force)
        if done:
            refuse_unreadable(change, self._options.scene.max_unreadable)
        return _Comparison(before, after, replace(run, tags=tags(run, same)), done)

    def _compare(self, comparison: _Comparison) -> None:
        run, output = comparison.run, comparison.run.outputs[0]
        if comparison.done:
            discard_progress(output)
            self._listener.log.info(f"{output} is there already, of the very same run")
            return
        detector, listener = self._engine.detector, self._listener
        with self._opened(comparison.before, comparison.after.date.path) as pair:
            before = self._features(comparison.before, pair.before)
            after = self._features(comparison.after, pair.after) if self._options.consecutive else None
            run = replace(run, features=[stored.sha256 for stored in (before, after) if stored])
            report = run_pair(
                run, pair, lambda task: compare(task, detector, (before, after)), listener.log, listener.progress
            )
        discard_progress(output)
        self._listener.finished(output, report)

    def _features(self, encoding: Encoding, raster: Raster) -> FeatureFile:
        """Those that are there, of this very date, bundle and options, or made now, of the date open as ``raster``."""
        path, given = self._place(encoding), self._is_given(encoding)
        if given or path.exists():
            found = open_features(path)
            words = found.misfit(encoding.footer())
            if words is None:
                if was_named(path):
                    discard_progress(path)
                encoding.tally(found.footer.holes)
                return found
            if given or not encoding.options.force:
                raise UsageError(
                    f"features {path} were made with {words}; encode the raster again, or choose another -o"
                )
        made, resumed = make_features(encoding, raster, path, log=self._listener.log, progress=self._listener.progress)
        if resumed:
            self._listener.log.info(f"{path.name}: gone on from tile {resumed} of an ended run")
        return made

    def _is_given(self, encoding: Encoding) -> bool:
        return encoding.first and self._options.features is not None

    def _place(self, encoding: Encoding) -> Path:
        given = self._options.features if encoding.first else None
        return given or self._folder / f"{encoding.date.path.stem}{SUFFIX}"

    def _discard(self, encodings: set[Encoding]) -> None:
        """Remove dates' features from the folder, where they are what this call would make."""
        for encoding in encodings:
            path = self._place(encoding)
            with suppress(InputError):  # none are there
                if not self._is_given(encoding) and open_features(path).misfit(encoding.footer()) is None:
                    path.unlink()

    @contextmanager
    def _noted(self, date: Path) -> Iterator[None]:
        try:
            yield
        except MisgnetError as error:
            self._listener.log.error(f"{date}: {error}; the other dates are run")
            self._failures.append((date, error))

    def _raise_first(self, count: int) -> None:
        if self._failures:
            date, error = self._failures[0]
            raise type(error)(f"{len(self._failures)} of {count} dates failed, first {date}: {error}") from error
