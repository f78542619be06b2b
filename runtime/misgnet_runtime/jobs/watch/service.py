"""Runs the watcher: scans a folder repeatedly and processes complete pairs in order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.bundle.signing.policy import required_elsewhere
from misgnet_runtime.errors import InputError, StorageError, UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.selection import DetectorOpener, open_detector
from misgnet_runtime.jobs.watch.completeness import Settling
from misgnet_runtime.jobs.watch.isolated import IsolatedProcessor, Setup
from misgnet_runtime.jobs.watch.journal import open_journal
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.jobs.watch.outcomes import WatchReport
from misgnet_runtime.jobs.watch.pairing import FilePair, Kind
from misgnet_runtime.jobs.watch.processing import LocalProcessor, Processor, missing_library
from misgnet_runtime.jobs.watch.retry import Backoff, lacks_room
from misgnet_runtime.jobs.watch.worker import Worker
from misgnet_runtime.log import EventLog

_BACKOFF_ROUNDS = 10  # rounds until a pair that the output disk refused is retried
_MAX_REFUSALS = 3  # consecutive pairs refused by the output disk that end a round


def watch_folder(
    bundle_path: Path,
    folder: Path,
    output: Path,
    options: WatchOptions,
    log: EventLog,
    *,
    opener: DetectorOpener = open_detector,
) -> WatchReport:
    """Processes every complete pair of ``folder`` into ``output`` until SIGTERM or SIGINT arrives, or once.

    A failed pair is journaled with its message and does not stop the others. If the folder disappears or the disk
    refuses, that is logged and the watcher waits, except with ``once``. Interrupted pairs are resumed.

    Args:
        bundle_path: Bundle folder.
        folder: Folder to watch.
        output: Output folder, created if missing.
        options: How pairs are found and processed.
        log: Receives log messages and results.
        opener: Opens the engine in this process; with ``options.max_seconds``, the child process opens its own.

    Raises:
        UsageError: Another watcher is using ``output``, or it holds the results of another bundle.
        InputError: The folder or the bundle cannot be read.
        UnavailableError: The engine does not open; or it fails during the run, and fails its golden tiles after it was
            reopened.
        StorageError: With ``once``, an output cannot be written.
    """
    options.check()
    if output.resolve() == folder.resolve():
        raise UsageError(f"output {output} is the watched folder; choose another -o")
    _list_names(folder)
    report = WatchReport()
    with _until_stopped() as stop, open_journal(output) as journal:
        bundle = read_bundle(bundle_path)
        with closing(_processor(bundle, bundle_path, output, options, log, opener=opener)) as processor:
            worker = Worker(output, options, processor, journal, report=report, log=log)
            stop.release = worker.release
            worker.start(bundle.digest())
            ended = journal.pairs.ended
            log.info(f"watching {folder}; {plural(len(ended), 'pair')} processed earlier; engine {processor.title}")
            watch = _Watch(folder, options, worker, log, stop)
            try:
                watch.run()
            finally:
                report.pending = watch.pending
    return report


def _processor(
    bundle: Bundle, path: Path, output: Path, options: WatchOptions, log: EventLog, *, opener: DetectorOpener
) -> Processor:
    if options.max_seconds is None:
        scene = options.scene
        return LocalProcessor(
            bundle, lambda name: opener(bundle, name, scene.execution, optimise_for=scene.optimise_for), output,
            options, log,
        )  # fmt: skip
    setup = Setup(path.absolute(), bundle.digest(), required_elsewhere(), output.absolute(), options)
    return IsolatedProcessor(setup, options.max_seconds, log)


@dataclass
class _Stop:
    """Whether the process was asked to stop. An exception alone is not enough: Python ignores some exceptions."""

    requested: bool = False
    # Called at once on request: the sender of the signal may not wait until the stack is unwound.
    release: Callable[[], None] = lambda: None


@contextmanager
def _until_stopped() -> Iterator[_Stop]:
    """Makes SIGTERM and SIGINT end the block without an error; the current pair is resumed later."""
    stop = _Stop()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        stop.release()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with suppress(KeyboardInterrupt):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watch:
    """Scans one folder in rounds, and remembers which remarks were logged."""

    def __init__(self, folder: Path, options: WatchOptions, worker: Worker, log: EventLog, stop: _Stop) -> None:
        self._folder, self._options = folder, options
        self._worker, self._log, self._stop = worker, log, stop
        self._settling, self._backoff = Settling(options.settle), Backoff(_BACKOFF_ROUNDS * options.poll)
        self._logged: set[str] = set()
        self._missing: dict[Kind, str | None] = {}
        self.pending = 0

    def run(self) -> None:
        if self._options.once:
            if self._round() and not self._options.naming.marker:
                time.sleep(self._options.settle)
                self._round()
            return
        while not self._stop.requested:
            self._round()
            time.sleep(self._options.poll)

    def _round(self) -> bool:
        """Processes all complete pairs; returns whether a due pair is not complete yet."""
        try:
            names = _list_names(self._folder)
        except InputError as error:
            if self._options.once:
                raise
            self._report({f"{error}; waiting for it"})
            return False
        pairs, remarks = self._options.naming.pairs(self._folder, names)
        due = [pair for pair in pairs if self._worker.is_due(pair)]
        self.pending = len(due)
        complete = self._complete(due)
        able = [pair for pair in complete if self._library(pair.kind) is None]
        remarks += self._take_all(able)
        remarks += [f"pairs of GeoTIFFs are waiting: {self._missing['scene']}"] if len(able) < len(complete) else []
        remarks += self._backoff.remarks() + self._forget(pairs, names)
        self.pending = sum(map(self._worker.is_due, due))
        self._report(set(remarks))
        return len(complete) < len(due)

    def _take_all(self, pairs: list[FilePair]) -> list[str]:
        """Processes pairs and returns remarks on unreadable ones.

        With ``once``, raises StorageError if the output disk refused a pair.
        """
        remarks: list[str] = []
        refused: list[StorageError] = []
        consecutive = 0
        for pair in pairs:
            if self._stop.requested or (consecutive == _MAX_REFUSALS and not self._options.once):
                break
            if not self._backoff.allows(pair.name, time.monotonic()):
                continue
            try:
                self._take(pair)
                consecutive = 0
            except StorageError as error:
                refused.append(error)
                consecutive += 1
                self._backoff.refuse(pair.name, str(error), time.monotonic())
            except InputError as error:
                remarks.append(str(error))
        if refused and self._options.once:
            raise refused[0]
        return remarks

    def _take(self, pair: FilePair) -> None:
        """Processes a pair; if the disk is full, discards the partial results of larger pairs and tries again."""
        try:
            self._worker.take(pair)
        except StorageError as error:
            if not lacks_room(error) or not self._worker.make_room(pair):
                raise
            self._worker.take(pair)
        self._backoff.forget(pair.name)

    def _library(self, kind: Kind) -> str | None:
        """Returns why pairs of a kind cannot be processed here, or None; checked once."""
        if kind not in self._missing:
            self._missing[kind] = missing_library(kind, self._options)
        return self._missing[kind]

    def _complete(self, due: list[FilePair]) -> list[FilePair]:
        """Returns the complete pairs in order of arrival, unfinished ones first."""
        if self._options.naming.marker:
            found = [pair for pair in due if pair.marked is not None]
        else:
            found = self._settling.settled(due, time.monotonic())
        return sorted(found, key=lambda pair: (pair.name not in self._worker.unfinished, pair.arrived, pair.name))

    def _forget(self, pairs: list[FilePair], names: list[str]) -> list[str]:
        """Drops state of pairs that have left the folder; returns a remark if the journal cannot be compacted."""
        here = {pair.name for pair in pairs}
        self._worker.forget(here)
        self._backoff.keep(here)
        try:
            self._worker.compact(names)
        except StorageError as error:
            return [str(error)]
        return []

    def _report(self, remarks: set[str]) -> None:
        """Logs each remark once for as long as it applies."""
        for remark in sorted(remarks - self._logged):
            self._log.warning(remark)
        self._logged = remarks


def _list_names(folder: Path) -> list[str]:
    """Returns the names in the folder; raises InputError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {error.strerror or error}") from error
