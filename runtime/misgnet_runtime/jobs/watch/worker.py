"""Processes complete pairs once each, and journals every step so that a crash at any point does not change that."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from misgnet_runtime.errors import GateFailed, InputError, UnavailableError, UsageError
from misgnet_runtime.formatting import now
from misgnet_runtime.jobs.watch import attempts
from misgnet_runtime.jobs.watch.isolated import PairCrashedError
from misgnet_runtime.jobs.watch.journal import (
    SCHEMA,
    Complete,
    Ended,
    FileState,
    Journal,
    Kept,
    PairStarted,
    Read,
    Started,
    Unfinished,
)
from misgnet_runtime.jobs.watch.options import ENDINGS, WatchOptions
from misgnet_runtime.jobs.watch.outcomes import Outcomes, WatchReport
from misgnet_runtime.jobs.watch.pairing import File, FilePair
from misgnet_runtime.jobs.watch.processing import Processor, folder_names
from misgnet_runtime.jobs.watch.retry import message_of, refused_by_disk, refused_by_source
from misgnet_runtime.log import EventLog
from misgnet_runtime.storage.atomic import refuse_existing
from misgnet_runtime.storage.jsonl import difference


class Worker:
    """Processes pairs into ``output`` one at a time, and counts them in ``report``."""

    def __init__(
        self,
        output: Path,
        options: WatchOptions,
        processor: Processor,
        journal: Journal,
        *,
        report: WatchReport,
        log: EventLog,
    ) -> None:
        self._output, self._options, self._processor, self._journal = output, options, processor, journal
        self._log = log
        self._outcomes = Outcomes(output, options, journal, report, log)
        self._retry = journal.failed() if options.retry_failed else set()
        self._skipped: dict[str, tuple[File, File]] = {}  # inspected pairs whose outcome is kept
        self._digests: dict[str, tuple[tuple[File, File], tuple[str, str]]] = {}
        self._current: str | None = None

    @property
    def unfinished(self) -> dict[str, Unfinished]:
        """Returns the pairs that were started and have no outcome, by name."""
        return self._journal.pairs.unfinished

    def start(self, bundle: str) -> None:
        """Finishes pairs that an earlier watcher completed, counts its crashes, and journals the current conditions.

        Raises:
            UsageError: Earlier pairs were processed with another bundle than ``bundle`` (a digest), without ``force``.
        """
        started = Started(now(), SCHEMA.format, bundle, self._processor.engine, self._options.settings())
        last = self._journal.pairs.started
        if last is not None and last.bundle != started.bundle and not self._options.force:
            raise UsageError(
                f"{self._output} holds results of bundle {last.bundle[:16]}, but this bundle is "
                f"{started.bundle[:16]}; choose another -o, or use this bundle from now on with --force"
            )
        for pair in list(self.unfinished.values()):
            if pair.complete is not None:
                self._outcomes.finish_late(pair.complete)
            elif attempts.crashed(self._output, pair.start.pair):
                self._outcomes.count_crash(pair.start.pair)
            self._drop_cached(pair.start.pair)
        attempts.clear(self._output, keep=self.unfinished)
        if last is None or _conditions(last) != _conditions(started):
            self._log_changed_conditions(last, started)
            attempts.clear(self._output)  # partial results of other conditions cannot be resumed
            self._journal.add(started)

    def is_due(self, pair: FilePair) -> bool:
        """Returns whether the pair is new, has changed since its outcome, or must be retried."""
        ended = self._journal.pairs.ended.get(pair.name)
        changed = ended is None or ended.start.state != pair.state
        return self._skipped.get(pair.name) != pair.files and (changed or self._must_process(pair))

    def take(self, pair: FilePair) -> None:
        """Processes a due pair, unless its bytes are unchanged or its earlier outcome is kept.

        A failure of the pair itself is journaled. After any of these errors the pair stays due:

        Raises:
            StorageError: The output disk refuses.
            UnavailableError: The engine fails.
            InputError: An input file cannot be read at present.
        """
        if not pair.is_as_found():
            return
        earlier = self._journal_start(pair)
        self._current = pair.name
        with attempts.running(self._output, pair.name) as folder:
            try:
                self._attempt(pair, folder, earlier)
            except Exception as error:
                self._handle_error(pair, error)
        self._current = None
        self._drop_cached(pair.name)

    def release(self) -> None:
        """Marks the current pair as stopped on request, so that it does not count as crashed."""
        if self._current is not None:
            attempts.forget_crash(self._output, self._current)

    def make_room(self, pair: FilePair) -> bool:
        """Removes partial results of unfinished pairs that are larger than ``pair``; returns whether there were any."""
        size = sum(file.size for file in pair.files)
        larger = [
            name
            for name, other in self.unfinished.items()
            if name != pair.name and other.complete is None and other.start.before.size + other.start.after.size > size
            and attempts.work_folder(self._output, name).exists()
        ]  # fmt: skip
        for name in larger:
            self._log.warning(f"{name}: partial results discarded to make room for {pair.name}", pair=name)
            attempts.clear_pair(self._output, name)
        return bool(larger)

    def compact(self, names: Iterable[str]) -> None:
        """Compacts a long journal. It forgets pairs that have neither an input file nor an output any more.

        Args:
            names: Names of the files in the watched folder.
        """
        if self._journal.is_long:
            here, made = set(names), folder_names(self._output)
            pairs = self._journal.pairs
            states: dict[str, PairStarted | Ended] = {
                **pairs.ended,
                **{n: p.start for n, p in pairs.unfinished.items()},
            }
            self._journal.compact(
                name
                for name, state in states.items()
                if here & {state.before.name, state.after.name} or any(name + ending in made for ending in ENDINGS)
            )

    def forget(self, names: set[str]) -> None:
        """Drops cached state and partial results of all pairs except ``names``, which are in the folder."""
        self._skipped = {name: files for name, files in self._skipped.items() if name in names}
        self._digests = {name: known for name, known in self._digests.items() if name in names}
        for name, pair in self.unfinished.items():
            if name not in names and pair.complete is None:
                attempts.clear_pair(self._output, name)

    def _drop_cached(self, name: str) -> None:
        """Drops state that was cached for the next attempt of a pair, once the pair has an outcome."""
        if name not in self.unfinished:
            self._retry.discard(name)
            self._digests.pop(name, None)

    def _must_process(self, pair: FilePair) -> bool:
        """Returns whether the pair is processed even if its files are unchanged: it is to be retried or resumed."""
        unfinished = self.unfinished.get(pair.name)
        return pair.name in self._retry or (unfinished is not None and unfinished.is_read)

    def _journal_start(self, pair: FilePair) -> PairStarted | None:
        """Journals the start of a pair; returns its earlier unfinished start, if any."""
        unfinished = self.unfinished.get(pair.name)
        if self._must_process(pair):
            self._retry.add(pair.name)  # also if its files have changed since
        if unfinished is None or unfinished.start.state != pair.state:
            self._journal.add(PairStarted(now(), pair.name, *map(_state, pair.files)))
        return None if unfinished is None else unfinished.start

    def _attempt(self, pair: FilePair, folder: Path, earlier: PairStarted | None) -> None:
        complete = self.unfinished[pair.name].complete
        if complete is None:
            if self._is_kept(pair, folder, earlier):
                return
            self._refuse_foreign_outputs(pair)
            figures = self._figures(pair, folder)
            if not pair.is_as_found():
                raise InputError("its files changed")
            complete = Complete(now(), pair.name, self._options.outputs(pair), figures)
            self._journal.add(complete)
        self._outcomes.finish(complete)

    def _is_kept(self, pair: FilePair, folder: Path, earlier: PairStarted | None) -> bool:
        """Reads the pair's files; returns whether their earlier outcome is kept. If not, journals the digests."""
        before, after = digests = self._read(pair, folder)
        read = PairStarted(now(), pair.name, *(_state(*both) for both in zip(pair.files, digests, strict=True)))
        ended = self._journal.pairs.ended.get(pair.name)
        if ended is not None and pair.name not in self._retry:
            same = ended.start.same_files(read)
            if same or not (ended.outcome == "failed" or ended.incomplete or self._options.reprocess):
                self._keep(pair, same)
                return True
        if earlier is None or not earlier.same_files(read):
            attempts.start_over(folder)
        self._journal.add(Read(now(), pair.name, before, after))
        return False

    def _read(self, pair: FilePair, folder: Path) -> tuple[str, str]:
        """Returns the digests of both files; cached for retries after a disk or engine error."""
        known = self._digests.get(pair.name)
        if known is None or known[0] != pair.files:
            known = self._digests[pair.name] = pair.files, self._processor.digests(pair, folder)
        if not pair.is_as_found():
            raise InputError("its files changed")
        return known[1]

    def _keep(self, pair: FilePair, same: bool) -> None:
        self._journal.add(Kept(now(), pair.name, same))
        self._skipped[pair.name] = pair.files
        attempts.clear_pair(self._output, pair.name)
        if not same:
            self._outcomes.warn(
                pair.name, "its files have changed since it was processed; process it again with --reprocess"
            )

    def _figures(self, pair: FilePair, folder: Path) -> dict[str, Any]:
        """Processes the pair; if the engine fails, reopens it, checks its golden tiles and retries once."""
        message = ""
        for _ in range(2):
            try:
                return self._processor.process(pair, folder)
            except (GateFailed, UnavailableError) as error:
                message = message_of(error)
                self._outcomes.warn(pair.name, f"{message}; reopening the engine and checking it with its golden tiles")
            try:
                self._processor.recover()
            except UnavailableError as error:
                raise UnavailableError(f"the engine failed on pair {pair.name} ({message}); {error}") from error
        raise InputError(f"the engine failed on this pair twice, but passes its golden tiles: {message}")

    def _handle_error(self, pair: FilePair, error: Exception) -> None:
        """Fails the pair if the error is its own; otherwise raises the error, and the pair stays due."""
        if isinstance(error, UnavailableError):
            raise error
        if not pair.is_as_found():
            attempts.clear_pair(self._output, pair.name)
            how = "changed" if all(map(File.of, (file.path for file in pair.files))) else "vanished"
            self._outcomes.warn(pair.name, f"its files {how} while being read; waiting until they are complete")
        elif refused_by_disk(error):
            raise error
        elif refused_by_source(error):
            raise InputError(f"{pair.name} cannot be read: {message_of(error)}; waiting for it") from error
        elif isinstance(error, PairCrashedError):
            self._outcomes.count_crash(pair.name, message_of(error))
        else:
            self._outcomes.fail(pair.name, message_of(error))

    def _log_changed_conditions(self, last: Started | None, started: Started) -> None:
        """Logs the unfinished pairs that cannot be resumed because options or tuned settings have changed."""
        changes = None if last is None else difference(_conditions(last), _conditions(started))
        for name in self.unfinished if changes else ():
            self._log.info(f"{name} was started with {changes}; it is processed from the start", pair=name)

    def _refuse_foreign_outputs(self, pair: FilePair) -> None:
        ended = self._journal.pairs.ended.get(pair.name)
        if ended is None or not ended.done:
            for name in self._options.outputs(pair):
                refuse_existing(self._output / name, self._options.force)


def _conditions(started: Started) -> dict[str, str]:
    """Returns the conditions under which an unfinished pair can be resumed."""
    return {
        "the journal's format": str(started.format),
        "the bundle": started.bundle[:16],
        "the engine": started.engine,
        **started.settings,
    }


def _state(file: File, sha256: str | None = None) -> FileState:
    return FileState(file.path.name, file.size, file.mtime_ns, sha256)
