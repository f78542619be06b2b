"""The watcher: inspects a folder again and again, and has what is complete processed, in order."""

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
from misgnet_runtime.inference.selection import open_detector
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

_PATIENCE = 10  # rounds until a pair that the disk refused is tried again
_REFUSALS = 3  # of pairs, one after the other, that end a round


def watch_folder(bundle_path: Path, folder: Path, output: Path, options: WatchOptions, log: EventLog) -> WatchReport:
    """Process every pair of ``folder`` that is complete into ``output``, once, until SIGTERM or SIGINT, or ``once``.

    A pair that fails is journaled with its message, and the next one is taken. A folder that disappears and a disk
    that refuses are logged and waited for, but for ``once``. What an interrupted watcher began is resumed.
    Raises UsageError where another watcher is at work or another bundle was, InputError; UnavailableError also where
    the engine fails in mid-run, and fails its golden tiles when it is opened again.
    """
    options.check()
    if output.resolve() == folder.resolve():
        raise UsageError(f"output {output} is the folder that is watched; choose another -o")
    _look(folder)
    report = WatchReport()
    with _until_stopped() as stop, open_journal(output) as journal:
        bundle = read_bundle(bundle_path)
        with closing(_processor(bundle, bundle_path, output, options, log)) as processor:
            worker = Worker(output, options, processor, journal, report=report, log=log)
            stop.release = worker.release
            worker.start(bundle.digest())
            ended = journal.pairs.ended
            log.info(f"watching {folder}, {plural(len(ended), 'pair')} processed before, engine {processor.title}")
            watch = _Watch(folder, options, worker, log, stop)
            try:
                watch.run()
            finally:
                report.pending = watch.pending
    return report


def _processor(bundle: Bundle, path: Path, output: Path, options: WatchOptions, log: EventLog) -> Processor:
    if options.max_seconds is None:
        scene = options.scene
        return LocalProcessor(
            bundle, lambda name: open_detector(bundle, name, scene.execution, optimise_for=scene.optimise_for), output,
            options, log,
        )  # fmt: skip
    setup = Setup(path.absolute(), bundle.digest(), required_elsewhere(), output.absolute(), options)
    return IsolatedProcessor(setup, options.max_seconds, log)


@dataclass
class _Stop:
    """Whether the process was asked to end; an exception alone can be lost where Python ignores it."""

    asked: bool = False
    # Called at once: whoever asks may not wait until all is unwound.
    release: Callable[[], None] = lambda: None


@contextmanager
def _until_stopped() -> Iterator[_Stop]:
    """SIGTERM and SIGINT end the block where it stands, without an error: what it began is resumed later."""
    stop = _Stop()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.asked = True
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
    """The rounds over one folder, and what was logged of them."""

    def __init__(self, folder: Path, options: WatchOptions, worker: Worker, log: EventLog, stop: _Stop) -> None:
        self._folder, self._options = folder, options
        self._worker, self._log, self._stop = worker, log, stop
        self._settling, self._backoff = Settling(options.settle), Backoff(_PATIENCE * options.poll)
        self._logged: set[str] = set()
        self._missing: dict[Kind, str | None] = {}
        self.pending = 0

    def run(self) -> None:
        if self._options.once:
            if self._round() and not self._options.naming.marker:
                time.sleep(self._options.settle)
                self._round()
            return
        while not self._stop.asked:
            self._round()
            time.sleep(self._options.poll)

    def _round(self) -> bool:
        """Have all that is complete processed; whether something is due and is not complete."""
        try:
            names = _look(self._folder)
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
        remarks += [f"pairs of GeoTIFFs wait: {self._missing['scene']}"] if len(able) < len(complete) else []
        remarks += self._backoff.remarks() + self._forget(pairs, names)
        self.pending = sum(map(self._worker.is_due, due))
        self._report(set(remarks))
        return len(complete) < len(due)

    def _take_all(self, pairs: list[FilePair]) -> list[str]:
        """Have pairs processed; why the files of some cannot be read. With ``once``, raises what the disk refused."""
        remarks: list[str] = []
        refused: list[StorageError] = []
        in_a_row = 0
        for pair in pairs:
            if self._stop.asked or (in_a_row == _REFUSALS and not self._options.once):
                break
            if not self._backoff.allows(pair.name, time.monotonic()):
                continue
            try:
                self._take(pair)
                in_a_row = 0
            except StorageError as error:
                refused.append(error)
                in_a_row += 1
                self._backoff.refuse(pair.name, str(error), time.monotonic())
            except InputError as error:
                remarks.append(str(error))
        if refused and self._options.once:
            raise refused[0]
        return remarks

    def _take(self, pair: FilePair) -> None:
        """Have a pair processed, on the room of larger ones that the disk refused, where it takes that."""
        try:
            self._worker.take(pair)
        except StorageError as error:
            if not lacks_room(error) or not self._worker.make_room(pair):
                raise
            self._worker.take(pair)
        self._backoff.forget(pair.name)

    def _library(self, kind: Kind) -> str | None:
        """Why pairs of a kind cannot be processed here; asked once."""
        if kind not in self._missing:
            self._missing[kind] = missing_library(kind, self._options)
        return self._missing[kind]

    def _complete(self, due: list[FilePair]) -> list[FilePair]:
        """In the order in which they became so; first what was begun and has not ended."""
        if self._options.naming.marker:
            found = [pair for pair in due if pair.marked is not None]
        else:
            found = self._settling.settled(due, time.monotonic())
        return sorted(found, key=lambda pair: (pair.name not in self._worker.unfinished, pair.arrived, pair.name))

    def _forget(self, pairs: list[FilePair], names: list[str]) -> list[str]:
        """Let go of what concerns pairs that have left the folder; a remark where the journal's disk refuses."""
        here = {pair.name for pair in pairs}
        self._worker.forget(here)
        self._backoff.keep(here)
        try:
            self._worker.compact(names)
        except StorageError as error:
            return [str(error)]
        return []

    def _report(self, remarks: set[str]) -> None:
        """Log each once, for as long as it stays true."""
        for remark in sorted(remarks - self._logged):
            self._log.warning(remark)
        self._logged = remarks


def _look(folder: Path) -> list[str]:
    """The names in the folder; InputError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {error.strerror or error}") from error
