"""A reference and every new date, or each date and the one before: encoded once, and compared by their features."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import msgspec

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import InputError, MisgnetError, UsageError
from misgnet_runtime.jobs.journal import discard_progress, tuned_since, was_begun, was_named
from misgnet_runtime.jobs.scene.inputs import check_readable, look_at_pair
from misgnet_runtime.jobs.scene.run import INTERRUPTED, Run, SceneReport, refuse_outputs, refuse_unreadable, run_pair
from misgnet_runtime.jobs.series.comparison import compare
from misgnet_runtime.jobs.series.encoding import (
    Encoding,
    SplitEngine,
    look_at_encoding,
    make_features,
    open_split_engine,
)
from misgnet_runtime.jobs.series.features import SUFFIX, FeatureFile, open_features
from misgnet_runtime.jobs.series.options import SeriesOptions
from misgnet_runtime.log import EventLog
from misgnet_runtime.raster.geotiff import read_tags
from misgnet_runtime.raster.polygons import load_vector_libraries
from misgnet_runtime.storage.atomic import refuse_inputs

_SAME_RUN = "MISGNET_RUN_SHA256"


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
    bundle_path: Path, reference: Path, dates: Sequence[Path], folder: Path, options: SeriesOptions, listener: Listener
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
    check_readable(reference, "before", options.scene.max_unreadable)
    try:
        with open_split_engine(bundle, options.scene) as engine:
            _Series(engine, folder, options, listener).run(reference, dates)
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
    """One call's work: everything is looked at, then each date is run."""

    def __init__(self, engine: SplitEngine, folder: Path, options: SeriesOptions, listener: Listener) -> None:
        self._engine, self._folder, self._options, self._listener = engine, folder, options, listener
        self._failures: list[tuple[Path, MisgnetError]] = []

    def run(self, reference: Path, dates: Sequence[Path]) -> None:
        comparisons = self._look_at_all(reference, dates)
        if not self._options.consecutive and not all(one.done for one in comparisons):
            self._features(comparisons[0].before)  # no date can be run without: what fails here ends the call
        for comparison, following in zip_longest(comparisons, comparisons[1:]):
            with self._noted(comparison.after.date.path):
                self._compare(comparison)
            if self._options.consecutive and following:
                self._discard({comparison.before, comparison.after} - {following.before})
        if self._options.discard_features and not self._failures:
            self._discard({encoding for last in comparisons[-1:] for encoding in (last.before, last.after)})
        self._raise_first(len(dates))

    def _look_at_all(self, reference: Path, dates: Sequence[Path]) -> list[_Comparison]:
        """What is to be compared; a date that cannot be is noted."""
        scene, found = self._options.scene, []
        first = look_at_encoding(self._engine, reference, scene)
        self._listener.log.info(f"{reference.name}: {first.date.scaling}")
        before: Encoding | None = first
        for path in dates:
            after = None
            with self._noted(path):
                after = look_at_encoding(self._engine, path, scene, first.grid)
                self._listener.log.info(f"{path.name}: {after.date.scaling}")
                if before is None:
                    raise InputError("there is nothing to compare it with: the date before it failed")
                found.append(self._comparison(before, after))
            if self._options.consecutive:
                before = after
        return found

    def _comparison(self, before: Encoding, after: Encoding) -> _Comparison:
        grid = None if before.first else before.grid  # the first is not warped onto itself
        inputs = look_at_pair(before.date, after.date, align=self._options.scene.align, grid=grid)
        for warning in inputs.warnings():
            self._listener.log.warning(f"{after.date.path.name}: {warning}")
        change, options = self._options.of_date(self._folder, after.date.path)
        engine, outputs = self._engine, [change, *options.products().values()]
        run = Run(
            engine.bundle, inputs, options, outputs, engine.detector.interface, engine.entry, engine.device,
            engine.streams, engine.reason, tuned_batch=engine.detector.batch,
        )  # fmt: skip
        same = _digest(run)
        begun = was_begun(change)
        done = not begun and not options.restart and _is_done(outputs, same)
        if not begun and not done and not options.force:
            _refuse_tuned_since(run)
            refuse_outputs(outputs, options.force)
        if done:
            refuse_unreadable(change, self._options.scene.max_unreadable)
        return _Comparison(before, after, replace(run, tags=_tags(run, same)), done)

    def _compare(self, comparison: _Comparison) -> None:
        run, output = comparison.run, comparison.run.outputs[0]
        if comparison.done:
            discard_progress(output)
            self._listener.log.info(f"{output} is there already, of the very same run")
            return
        before = self._features(comparison.before)
        after = self._features(comparison.after) if self._options.consecutive else None
        run = replace(run, features=[stored.sha256 for stored in (before, after) if stored])
        detector, progress, log = self._engine.detector, self._listener.progress, self._listener.log
        report = run_pair(
            run, lambda run, journal, tally: compare(run, detector, (before, after), journal, tally, progress), log
        )
        discard_progress(output)
        self._listener.finished(output, report)

    def _features(self, encoding: Encoding) -> FeatureFile:
        """Those that are there, of this very date, bundle and options, or made now."""
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
        made, resumed = make_features(encoding, path, log=self._listener.log, progress=self._listener.progress)
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


def _tags(run: Run, same: str) -> dict[str, str]:
    """By which a later call knows the outputs of this run, and of one that differs by what was tuned since."""
    settings = run.settings()
    return {
        "MISGNET_SPLIT": "yes", _SAME_RUN: same, "MISGNET_BATCH": settings["--batch"],
        "MISGNET_STREAMS": settings["--streams"],
    }  # fmt: skip


def _digest(run: Run) -> str:
    """SHA-256 of all that a run's outputs depend on, wherever they lie."""
    return _digest_of(run, run.settings())


def _digest_of(run: Run, settings: dict[str, str]) -> str:
    placed = {**settings, **dict.fromkeys((f"--{name}" for name in run.options.products()), "yes")}
    return hashlib.sha256(msgspec.json.encode(sorted(placed.items()))).hexdigest()


def _refuse_tuned_since(run: Run) -> None:
    """UsageError where the outputs are of this run, but for what misgnet-run tune has changed since."""
    change, now = run.outputs[0], run.settings()
    with suppress(InputError):
        tags = read_tags(change)
        then = {**now, "--batch": tags.get("MISGNET_BATCH", ""), "--streams": tags.get("MISGNET_STREAMS", "")}
        if tags.get(_SAME_RUN) == _digest_of(run, then) and (advice := tuned_since(then, now)):
            raise UsageError(f"output {change} is of the same run but for that: {advice}, or replace it with --force")


def _is_done(outputs: list[Path], same: str) -> bool:
    """Whether all outputs are there, and a run of that digest wrote them: the change raster gets its name last."""
    if not all(path.exists() for path in outputs):
        return False
    with suppress(InputError):
        return read_tags(outputs[0]).get(_SAME_RUN) == same
    return False
