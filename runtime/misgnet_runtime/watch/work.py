"""What is done with a pair that is complete: processed once, and journaled so that no end of a process changes that."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misgnet_runtime.bundle import file_sha256
from misgnet_runtime.clock import now
from misgnet_runtime.errors import InputError, MisgnetError, StorageError, UnavailableError, UsageError
from misgnet_runtime.log import EventLog
from misgnet_runtime.outputs import publish, refuse_existing, resumable_errors
from misgnet_runtime.scenes.journal import difference
from misgnet_runtime.watch.journal import FORMAT, Begun, Complete, Done, Failed, FileState, Journal, Started
from misgnet_runtime.watch.pairing import File, FilePair
from misgnet_runtime.watch.processing import Processor

WORKING = ".working"


@dataclass
class WatchReport:
    """Pairs that a process finished, and that failed."""

    done: int = 0
    failed: int = 0

    def line(self, output: Path) -> str:
        """For a person."""
        return f"{output}: {self.done} pairs done, {self.failed} failed"


class Worker:
    """Processes pairs into ``output``, one at a time, and counts them in ``report``."""

    def __init__(
        self, output: Path, processor: Processor, journal: Journal, report: WatchReport, log: EventLog
    ) -> None:
        self._output, self._processor, self._journal = output, processor, journal
        self._report, self._log = report, log
        self._options = processor.options
        self._retry = journal.failed() if self._options.retry_failed else set()
        self._passed: set[tuple[File, File]] = set()  # looked at, and left as they are

    @property
    def unfinished(self) -> str | None:
        """The name of the pair that was begun and has not ended."""
        return self._journal.unfinished.pair if self._journal.unfinished else None

    def start(self) -> None:
        """Finish what an ended watcher completed, and journal by what the next pairs are processed.

        UsageError where those before were of another bundle, but with ``force``.
        """
        started = self._started()
        last = self._journal.started
        if last is not None and last.bundle != started.bundle and not self._options.force:
            raise UsageError(
                f"{self._output} holds the results of the bundle {last.bundle[:16]}, and this one is "
                f"{started.bundle[:16]}; choose another -o, or go on with this one with --force"
            )
        if self._journal.complete is not None:
            self._finish(self._journal.complete)
        if self._journal.unfinished is None:
            self._clear()  # what was done, but for this
        if last is None or (last.bundle, last.engine, last.settings) != (
            started.bundle, started.engine, started.settings,
        ):  # fmt: skip
            self._tell_of_another_start(last, started)
            self._clear()  # of what was begun otherwise
            self._journal.add(started)

    def is_due(self, pair: FilePair) -> bool:
        """Whether the pair is new, has other files than when it ended, or is to be tried again."""
        ended = self._journal.ended.get(pair.name)
        changed = ended is None or ended[0].state != pair.state
        return pair.files not in self._passed and (changed or self._is_wanted(pair))

    def take(self, pair: FilePair) -> None:
        """Process a pair that is due, unless its bytes are those that were processed, or old ones are kept.

        Raises StorageError and UnavailableError, which are no fault of the pair's, and InputError where a file cannot
        be read: the pair stays due.
        """
        begun = Begun(now(), pair.name, *map(_state, pair.files))
        if not pair.is_as_found():
            return
        ended = self._journal.ended.get(pair.name)
        if ended is not None and not self._is_wanted(pair):
            same = ended[0].same_files(begun)
            if same or (isinstance(ended[1], Done) and not self._options.reprocess):
                self._passed.add(pair.files)
                if not same:
                    words = "its files have changed since it was processed; that is done anew with --reprocess"
                    self._warn(pair, words)
                return
        self._process(pair, begun)
        if self.unfinished is None:
            self._retry.discard(pair.name)

    def _is_wanted(self, pair: FilePair) -> bool:
        """Whether the pair is processed even if it is what it was when it ended: to be tried again, or begun again."""
        return pair.name in self._retry or pair.name == self.unfinished

    def _process(self, pair: FilePair, begun: Begun) -> None:
        folder = self._begin(begun)
        try:
            self._refuse_others_outputs(pair)
            figures = self._processor.process(pair, folder)
        except (StorageError, UnavailableError):
            raise
        except Exception as error:  # whatever is wrong with this pair, the next one is taken
            if pair.is_as_found():
                self._fail(pair, str(error) if isinstance(error, MisgnetError) else f"{type(error).__name__}: {error}")
            else:
                self._warn(pair, "its files changed or vanished while they were read; it waits until they are complete")
            return
        if not pair.is_as_found():
            self._clear()
            self._warn(pair, "its files changed while they were read; it waits until they are complete")
            return
        complete = Complete(now(), pair.name, self._options.outputs(pair), figures)
        self._journal.add(complete)
        self._finish(complete)

    def _begin(self, begun: Begun) -> Path:
        """The folder of the pair's results; what an ended process left there of the same files stays."""
        unfinished = self._journal.unfinished
        if unfinished is None or unfinished.pair != begun.pair or not unfinished.same_files(begun):
            self._clear()
            self._journal.add(begun)
        folder = self._output / WORKING
        with resumable_errors(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def _finish(self, complete: Complete) -> None:
        """Give results that are whole their names; those that have them already are passed over."""
        with resumable_errors(self._output):
            for name in complete.outputs:
                if (self._output / WORKING / name).exists():
                    publish(self._output / WORKING / name, self._output / name)
        self._journal.add(Done(now(), complete.pair))
        self._clear()
        self._report.done += 1
        self._log.result([_line(complete)], pair=complete.pair, outputs=complete.outputs, **complete.figures)

    def _fail(self, pair: FilePair, message: str) -> None:
        message = " ".join(message.split())
        self._journal.add(Failed(now(), pair.name, message))
        self._clear()
        self._report.failed += 1
        self._warn(pair, message)

    def _warn(self, pair: FilePair, message: str) -> None:
        self._log.warning(f"{pair.name}: {message}", pair=pair.name)

    def _tell_of_another_start(self, last: Started | None, now: Started) -> None:
        """What was begun is not gone on with where its options, or what was tuned for its engine, have changed."""
        if last is not None and self.unfinished is not None:
            words = difference(*({"the engine": s.engine, **s.settings} for s in (last, now))) or "another bundle"
            self._log.info(f"{self.unfinished} was begun with {words}; it is processed anew", pair=self.unfinished)

    def _refuse_others_outputs(self, pair: FilePair) -> None:
        if pair.name not in self._journal.done:
            for name in self._options.outputs(pair):
                refuse_existing(self._output / name, self._options.force)

    def _clear(self) -> None:
        shutil.rmtree(self._output / WORKING, ignore_errors=True)

    def _started(self) -> Started:
        processor = self._processor
        digest = processor.bundle.digest()
        return Started(now(), FORMAT, digest, processor.engine, self._options.settings())


def _state(file: File) -> FileState:
    try:
        return FileState(file.path.name, file.size, file.mtime_ns, file_sha256(file.path))
    except OSError as error:
        raise InputError(f"image {file.path} cannot be read: {error.strerror}; waiting for it") from error


def _line(complete: Complete) -> str:
    """For a person."""
    share: Any = complete.figures.get("changed_share")
    changed = "" if share is None else f": {100 * share:.2f} % changed"
    return f"{complete.pair}{changed}: {', '.join(reversed(complete.outputs))}"
