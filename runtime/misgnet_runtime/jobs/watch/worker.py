"""What is done with a pair that is complete: processed once, and journaled so that no end of a process changes that."""

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
    Begun,
    Complete,
    Ended,
    FileState,
    Journal,
    Kept,
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
    """Processes pairs into ``output``, one at a time, and counts them in ``report``."""

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
        self._passed: dict[str, tuple[File, File]] = {}  # inspected, and left as they are
        self._digests: dict[str, tuple[tuple[File, File], tuple[str, str]]] = {}
        self._current: str | None = None

    @property
    def unfinished(self) -> dict[str, Unfinished]:
        """The pairs that were begun and have not ended, by name."""
        return self._journal.pairs.unfinished

    def start(self, bundle: str) -> None:
        """Finish what an ended watcher completed, count what crashed it, and journal how pairs are processed from here.

        UsageError where those before were of another ``bundle`` (its digest), but with ``force``.
        """
        started = Started(now(), SCHEMA.format, bundle, self._processor.engine, self._options.settings())
        last = self._journal.pairs.started
        if last is not None and last.bundle != started.bundle and not self._options.force:
            raise UsageError(
                f"{self._output} holds the results of the bundle {last.bundle[:16]}, and this one is "
                f"{started.bundle[:16]}; choose another -o, or go on with this one with --force"
            )
        for pair in list(self.unfinished.values()):
            if pair.complete is not None:
                self._outcomes.finish_late(pair.complete)
            elif attempts.crashed(self._output, pair.begun.pair):
                self._outcomes.count_crash(pair.begun.pair)
            self._let_go(pair.begun.pair)
        attempts.clear(self._output, keep=self.unfinished)
        if last is None or _by_what(last) != _by_what(started):
            self._report_another_start(last, started)
            attempts.clear(self._output)  # of what was begun otherwise
            self._journal.add(started)

    def is_due(self, pair: FilePair) -> bool:
        """Whether the pair is new, has other files than when it ended, or is to be tried again."""
        ended = self._journal.pairs.ended.get(pair.name)
        changed = ended is None or ended.begun.state != pair.state
        return self._passed.get(pair.name) != pair.files and (changed or self._is_wanted(pair))

    def take(self, pair: FilePair) -> None:
        """Process a pair that is due, unless its bytes are those that were processed, or old ones are kept.

        Raises StorageError where the disk refuses and UnavailableError where the engine fails, which are no fault of
        the pair's, and InputError where a file cannot be read for now: the pair stays due.
        """
        if not pair.is_as_found():
            return
        earlier = self._begin(pair)
        self._current = pair.name
        with attempts.running(self._output, pair.name) as folder:
            try:
                self._attempt(pair, folder, earlier)
            except Exception as error:
                self._end_badly(pair, error)
        self._current = None
        self._let_go(pair.name)

    def release(self) -> None:
        """Note that the process was asked to end, so that what it does now is not taken for a crash."""
        if self._current is not None:
            attempts.forget_crash(self._output, self._current)

    def make_room(self, pair: FilePair) -> bool:
        """Remove what is kept of larger pairs that the disk refused, for a smaller one; whether there was any."""
        size = sum(file.size for file in pair.files)
        larger = [
            name
            for name, other in self.unfinished.items()
            if name != pair.name and other.complete is None and other.begun.before.size + other.begun.after.size > size
            and attempts.work_folder(self._output, name).exists()
        ]  # fmt: skip
        for name in larger:
            self._log.warning(f"{name}: its rows are discarded, to make room for {pair.name}", pair=name)
            attempts.clear_pair(self._output, name)
        return bool(larger)

    def compact(self, names: Iterable[str]) -> None:
        """Make a long journal short; ``names``: of what is in the folder.

        It forgets a pair of which neither a file there nor an output is left: should it come again, it is a new one.
        """
        if self._journal.is_long:
            here, made = set(names), folder_names(self._output)
            pairs = self._journal.pairs
            states: dict[str, Begun | Ended] = {**pairs.ended, **{n: p.begun for n, p in pairs.unfinished.items()}}
            self._journal.compact(
                name
                for name, state in states.items()
                if here & {state.before.name, state.after.name} or any(name + ending in made for ending in ENDINGS)
            )

    def forget(self, names: set[str]) -> None:
        """Keep only what concerns pairs called ``names``, which are in the folder: in memory, and of what is begun."""
        self._passed = {name: files for name, files in self._passed.items() if name in names}
        self._digests = {name: known for name, known in self._digests.items() if name in names}
        for name, pair in self.unfinished.items():
            if name not in names and pair.complete is None:
                attempts.clear_pair(self._output, name)

    def _let_go(self, name: str) -> None:
        """Forget what is known of a pair that has ended for its next attempt."""
        if name not in self.unfinished:
            self._retry.discard(name)
            self._digests.pop(name, None)

    def _is_wanted(self, pair: FilePair) -> bool:
        """Whether the pair is processed even if it is what it was when it ended: to be tried again, or begun again."""
        unfinished = self.unfinished.get(pair.name)
        return pair.name in self._retry or (unfinished is not None and unfinished.is_read)

    def _begin(self, pair: FilePair) -> Begun | None:
        """Journal that the pair is begun. By what it was begun before, where it has not ended."""
        unfinished = self.unfinished.get(pair.name)
        if self._is_wanted(pair):
            self._retry.add(pair.name)  # also where its files are others by now
        if unfinished is None or unfinished.begun.state != pair.state:
            self._journal.add(Begun(now(), pair.name, *map(_state, pair.files)))
        return None if unfinished is None else unfinished.begun

    def _attempt(self, pair: FilePair, folder: Path, earlier: Begun | None) -> None:
        complete = self.unfinished[pair.name].complete
        if complete is None:
            if self._is_kept(pair, folder, earlier):
                return
            self._refuse_others_outputs(pair)
            figures = self._figures(pair, folder)
            if not pair.is_as_found():
                raise InputError("its files changed")
            complete = Complete(now(), pair.name, self._options.outputs(pair), figures)
            self._journal.add(complete)
        self._outcomes.finish(complete)

    def _is_kept(self, pair: FilePair, folder: Path, earlier: Begun | None) -> bool:
        """Read the pair's files whole; whether how they ended still counts. Else journal that they are processed."""
        before, after = digests = self._read(pair, folder)
        read = Begun(now(), pair.name, *(_state(*both) for both in zip(pair.files, digests, strict=True)))
        ended = self._journal.pairs.ended.get(pair.name)
        if ended is not None and pair.name not in self._retry:
            same = ended.begun.same_files(read)
            if same or not (ended.outcome == "failed" or ended.incomplete or self._options.reprocess):
                self._keep(pair, same)
                return True
        if earlier is None or not earlier.same_files(read):
            attempts.start_over(folder)
        self._journal.add(Read(now(), pair.name, before, after))
        return False

    def _read(self, pair: FilePair, folder: Path) -> tuple[str, str]:
        """The digests of both files; not read again for what a disk refused or an engine failed on."""
        known = self._digests.get(pair.name)
        if known is None or known[0] != pair.files:
            known = self._digests[pair.name] = pair.files, self._processor.digests(pair, folder)
        if not pair.is_as_found():
            raise InputError("its files changed")
        return known[1]

    def _keep(self, pair: FilePair, same: bool) -> None:
        self._journal.add(Kept(now(), pair.name, same))
        self._passed[pair.name] = pair.files
        attempts.clear_pair(self._output, pair.name)
        if not same:
            self._outcomes.warn(
                pair.name, "its files have changed since it was processed; that is done anew with --reprocess"
            )

    def _figures(self, pair: FilePair, folder: Path) -> dict[str, Any]:
        """Process the pair, a second time where the engine fails, opened again, and passes its golden tiles."""
        message = ""
        for _ in range(2):
            try:
                return self._processor.process(pair, folder)
            except (GateFailed, UnavailableError) as error:
                message = message_of(error)
                self._outcomes.warn(
                    pair.name, f"{message}; the engine is opened again, and checked with its golden tiles"
                )
            try:
                self._processor.recover()
            except UnavailableError as error:
                raise UnavailableError(f"the engine failed on pair {pair.name} ({message}); {error}") from error
        raise InputError(f"the engine failed on it twice, and passes its golden tiles: {message}")

    def _end_badly(self, pair: FilePair, error: Exception) -> None:
        """Fail a pair for its own faults; raise others, and leave it due."""
        if isinstance(error, UnavailableError):
            raise error
        if not pair.is_as_found():
            attempts.clear_pair(self._output, pair.name)
            how = "changed" if all(map(File.of, (file.path for file in pair.files))) else "vanished"
            self._outcomes.warn(pair.name, f"its files {how} while they were read; it waits until they are complete")
        elif refused_by_disk(error):
            raise error
        elif refused_by_source(error):
            raise InputError(f"{pair.name} cannot be read: {message_of(error)}; waiting for it") from error
        elif isinstance(error, PairCrashedError):
            self._outcomes.count_crash(pair.name, message_of(error))
        else:
            self._outcomes.fail(pair.name, message_of(error))

    def _report_another_start(self, last: Started | None, started: Started) -> None:
        """What was begun is not resumed where its options, or what was tuned for its engine, have changed."""
        words = None if last is None else difference(_by_what(last), _by_what(started))
        for name in self.unfinished if words else ():
            self._log.info(f"{name} was begun with {words}; it is processed anew", pair=name)

    def _refuse_others_outputs(self, pair: FilePair) -> None:
        ended = self._journal.pairs.ended.get(pair.name)
        if ended is None or not ended.done:
            for name in self._options.outputs(pair):
                refuse_existing(self._output / name, self._options.force)


def _by_what(started: Started) -> dict[str, str]:
    return {
        "the journal's format": str(started.format),
        "the bundle": started.bundle[:16],
        "the engine": started.engine,
        **started.settings,
    }


def _state(file: File, sha256: str | None = None) -> FileState:
    return FileState(file.path.name, file.size, file.mtime_ns, sha256)
