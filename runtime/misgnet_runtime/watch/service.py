"""The watcher: looks at a folder again and again, and has what is complete processed, in order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from misgnet_runtime.bundle import read_bundle
from misgnet_runtime.choice import open_detector
from misgnet_runtime.errors import InputError, StorageError, UsageError
from misgnet_runtime.log import EventLog
from misgnet_runtime.watch.completeness import Settling
from misgnet_runtime.watch.journal import open_journal
from misgnet_runtime.watch.options import WatchOptions
from misgnet_runtime.watch.pairing import FilePair
from misgnet_runtime.watch.processing import Processor
from misgnet_runtime.watch.work import WatchReport, Worker

_PATIENCE = 10  # looks at the folder until a disk that refused is tried again


def watch_folder(bundle_path: Path, folder: Path, output: Path, options: WatchOptions, log: EventLog) -> WatchReport:
    """Process every pair of ``folder`` that is complete into ``output``, once, until SIGTERM or SIGINT, or ``once``.

    A pair that fails is journaled with its message, and the next one is taken. A folder that disappears and a disk
    that refuses are told and waited for, but for ``once``. What an ended watcher began is gone on with.
    Raises UsageError where another watcher is at work or another bundle was, InputError, UnavailableError.
    """
    options.check()
    if output.resolve() == folder.resolve():
        raise UsageError(f"output {output} is the folder that is watched; choose another -o")
    _look(folder)
    report = WatchReport()
    with _until_stopped() as stop, open_journal(output) as journal:
        bundle, scene = read_bundle(bundle_path), options.scene
        wishes = scene.engine, scene.streams, scene.threads, scene.batch, scene.goal
        with open_detector(bundle, *wishes) as opened:
            _, entry, reason = opened
            worker = Worker(output, Processor(bundle, opened, options, log), journal, report, log)
            worker.start()
            log.info(f"watching {folder}, {len(journal.ended)} pairs processed before, engine {entry.name} ({reason})")
            _Watch(folder, options, worker, log, stop).run()
    return report


class _Stop:
    """Whether the process was asked to end; an exception alone can be lost where Python ignores it."""

    asked = False


@contextmanager
def _until_stopped() -> Iterator[_Stop]:
    """SIGTERM and SIGINT end the block where it stands, without an error: what it began is gone on with later."""
    stop = _Stop()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.asked = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with suppress(KeyboardInterrupt):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watch:
    """The looks at one folder, and what was said of them."""

    def __init__(self, folder: Path, options: WatchOptions, worker: Worker, log: EventLog, stop: _Stop) -> None:
        self._folder, self._options, self._worker, self._log, self._stop = folder, options, worker, log, stop
        self._settling = Settling(options.settle)
        self._told: set[str] = set()

    def run(self) -> None:
        if self._options.once:
            if self._round() and not self._options.naming.marker:
                time.sleep(self._options.settle)
                self._round()
            return
        while not self._stop.asked:
            try:
                self._round()
                wait = self._options.poll
            except StorageError as error:
                self._tell({str(error)})
                wait = _PATIENCE * self._options.poll
            time.sleep(wait)

    def _round(self) -> bool:
        """Have all that is complete processed; whether something is due and is not complete."""
        try:
            names = _look(self._folder)
        except InputError as error:
            if self._options.once:
                raise
            self._tell({f"{error}; waiting for it"})
            return False
        pairs, remarks = self._options.naming.pairs(self._folder, names)
        due = [pair for pair in pairs if self._worker.is_due(pair)]
        complete = self._complete(due)
        for pair in complete:
            if not self._stop.asked:
                remarks += self._take(pair)
        self._tell(set(remarks))
        return len(complete) < len(due)

    def _take(self, pair: FilePair) -> list[str]:
        """Have a pair processed; why its files cannot be read, where that is so."""
        try:
            self._worker.take(pair)
        except StorageError:
            raise
        except InputError as error:
            return [str(error)]
        return []

    def _complete(self, due: list[FilePair]) -> list[FilePair]:
        """In the order in which they became so; first what was begun and has not ended."""
        if self._options.naming.marker:
            found = [pair for pair in due if pair.marked is not None]
        else:
            found = self._settling.settled(due, time.monotonic())
        return sorted(found, key=lambda pair: (pair.name != self._worker.unfinished, pair.arrived, pair.name))

    def _tell(self, remarks: set[str]) -> None:
        """Each once, for as long as it stays true."""
        for remark in sorted(remarks - self._told):
            self._log.warning(remark)
        self._told = remarks


def _look(folder: Path) -> list[str]:
    """The names in the folder; InputError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {error.strerror or error}") from error
