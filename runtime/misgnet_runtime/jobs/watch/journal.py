"""Reads and writes ``watch.jsonl``, the journal of a watcher.

The first line is :class:`Started`. Each pair then has :class:`PairStarted`, :class:`Read`, and :class:`Done`,
:class:`Failed` or :class:`Kept`. :class:`Complete` comes before ``done``: the results are complete in ``.working/`` and
are about to be moved to their final names. :class:`Unclean` records a crash. Compaction replaces the lines of a
finished pair by one :class:`Ended`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from misgnet_runtime.storage import jsonl
from misgnet_runtime.storage.jsonl import FileName, JournalSchema
from misgnet_runtime.storage.schema import Count, Sha256, Struct

JOURNAL = "watch.jsonl"


class FileState(Struct, frozen=True):
    """State of an input file."""

    name: str
    # In bytes.
    size: Count
    # Modification time in ns.
    mtime_ns: int
    # None until the file has been read.
    sha256: Sha256 | None = None


State = tuple[tuple[str, int, int], ...]


class Started(Struct, frozen=True, tag="started"):
    """The settings that the following pairs are processed with."""

    time: datetime
    format: int
    bundle: Sha256
    engine: str
    # By option name.
    settings: dict[str, str]


class PairStarted(Struct, frozen=True, tag="begun"):
    """Processing of a pair has started."""

    time: datetime
    pair: str
    before: FileState
    after: FileState

    @property
    def state(self) -> State:
        """Returns the state of both files; see :attr:`FilePair.state`."""
        return tuple((file.name, file.size, file.mtime_ns) for file in (self.before, self.after))

    def same_files(self, other: PairStarted) -> bool:
        """Returns whether both entries have files of equal names and bytes; False if the files have not been read."""
        ours, theirs = ([(f.name, f.sha256) for f in (start.before, start.after)] for start in (self, other))
        return ours == theirs and None not in (self.before.sha256, self.after.sha256)


class Read(Struct, frozen=True, tag="read"):
    """The files of a started pair were read, and the pair will be processed."""

    time: datetime
    pair: str
    before: Sha256
    after: Sha256


class Complete(Struct, frozen=True, tag="complete"):
    """All results of a pair are complete in its work folder."""

    time: datetime
    pair: str
    # File names in the output folder, in the order of publication.
    outputs: tuple[FileName, ...]
    # Fields of the report.
    figures: dict[str, Any]

    @property
    def incomplete(self) -> bool:
        """Returns whether blocks of the pair's files could not be read."""
        unread = self.figures.get("unread")
        return isinstance(unread, (list, tuple)) and any(unread)


class Done(Struct, frozen=True, tag="done"):
    """The results of a pair have been published."""

    time: datetime
    pair: str


class Failed(Struct, frozen=True, tag="failed"):
    """A pair has failed."""

    time: datetime
    pair: str
    message: str


class Kept(Struct, frozen=True, tag="kept"):
    """The pair's files have changed since it finished, and its outcome is kept."""

    time: datetime
    pair: str
    # Whether the bytes of the files are equal.
    same: bool


class Unclean(Struct, frozen=True, tag="unclean"):
    """A process crashed while it processed a pair."""

    time: datetime
    pair: str
    # Number of crashes without a newly finished raster row.
    attempts: Count
    # Number of finished raster rows.
    rows: Count


class Ended(Struct, frozen=True, tag="ended"):
    """The last outcome of a pair."""

    time: datetime
    pair: str
    before: FileState
    after: FileState
    outcome: Literal["done", "failed"]
    message: str = ""
    # How often the pair was processed successfully.
    done: Count = 0
    # Whether blocks of its files could not be read.
    incomplete: bool = False

    @property
    def start(self) -> PairStarted:
        return PairStarted(self.time, self.pair, self.before, self.after)


Entry = Started | PairStarted | Read | Complete | Done | Failed | Kept | Unclean | Ended
SCHEMA: JournalSchema[Entry] = JournalSchema(
    header=Started,
    entry=Entry,
    formats=(1, 2),
    advice="choose another -o, or move the file away; its pairs then count as not processed",
)


@dataclass
class Unfinished:
    """A pair that was started and has no outcome."""

    start: PairStarted
    complete: Complete | None = None
    unclean: Unclean | None = None

    @property
    def is_read(self) -> bool:
        """Returns whether the files were read, and the decision to process the pair was made."""
        return self.start.before.sha256 is not None

    def entries(self) -> Iterator[Entry]:
        """Yields the entries that restore this state."""
        yield self.start
        yield from (entry for entry in (self.complete, self.unclean) if entry is not None)


@dataclass
class Pairs:
    """State of all pairs according to the journal: the last outcome of each, and the unfinished ones."""

    started: Started | None = None
    ended: dict[str, Ended] = field(default_factory=dict)
    unfinished: dict[str, Unfinished] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        if isinstance(entry, Started):
            self.started = entry
        elif isinstance(entry, Ended):
            self.ended[entry.pair] = entry
        elif isinstance(entry, PairStarted):
            self.unfinished[entry.pair] = Unfinished(entry)
        elif (pair := self.unfinished.get(entry.pair)) is None:  # a line of a damaged journal
            return
        elif isinstance(entry, Read):
            start = pair.start
            before, after = replace(start.before, sha256=entry.before), replace(start.after, sha256=entry.after)
            pair.start = replace(start, before=before, after=after)
        elif isinstance(entry, Complete):
            pair.complete = entry
        elif isinstance(entry, Unclean):
            pair.unclean = entry
        else:
            del self.unfinished[entry.pair]
            self._end(pair, entry)

    def _end(self, pair: Unfinished, end: Done | Failed | Kept) -> None:
        start, last = pair.start, self.ended.get(end.pair)
        if isinstance(end, Kept):
            if last is not None and end.same:
                before = replace(start.before, sha256=last.before.sha256)
                after = replace(start.after, sha256=last.after.sha256)
                self.ended[end.pair] = replace(last, before=before, after=after)
            return
        found = Ended(
            time=end.time,
            pair=end.pair,
            before=start.before,
            after=start.after,
            outcome="failed",
            done=last.done if last else 0,
        )
        if isinstance(end, Failed):
            self.ended[end.pair] = replace(found, message=end.message)
        else:
            incomplete = pair.complete is not None and pair.complete.incomplete
            self.ended[end.pair] = replace(found, outcome="done", done=found.done + 1, incomplete=incomplete)

    def entries(self) -> Iterator[Entry]:
        """Yields the fewest entries that restore this state."""
        if self.started is not None:
            yield self.started
            yield from self.ended.values()
            for pair in self.unfinished.values():
                yield from pair.entries()


class Journal:
    """An open journal, and the state of all pairs."""

    # A journal is compacted only above this number of lines, and above twice the lines left by the last compaction.
    LINES = 1000

    def __init__(self, file: jsonl.Journal[Entry]) -> None:
        self._file = file
        self.pairs = Pairs()
        for entry in file.entries:
            self.pairs.take(entry)
        file.entries.clear()
        self._left = 0

    def add(self, entry: Entry) -> None:
        """Appends an entry to the file.

        Raises:
            StorageError: The entry cannot be written; a later call may succeed.
        """
        self._file.append(entry, sync=not isinstance(entry, Read))  # if a Read entry is lost, the files are read again
        self.pairs.take(entry)

    def failed(self) -> set[str]:
        """Returns the names of failed pairs."""
        return {name for name, end in self.pairs.ended.items() if end.outcome == "failed"}

    @property
    def is_long(self) -> bool:
        """Returns whether compaction is worthwhile."""
        return self._file.lines > max(self.LINES, 2 * self._left)

    def compact(self, keep: Iterable[str]) -> None:
        """Removes all pairs except those in ``keep`` and complete ones, and rewrites the file."""
        keep, pairs = set(keep), self.pairs
        kept = Pairs(
            pairs.started,
            {name: end for name, end in pairs.ended.items() if name in keep},
            {name: pair for name, pair in pairs.unfinished.items() if name in keep or pair.complete is not None},
        )
        if kept.started is not None:  # from now on, the file has the format of this version
            kept.started = replace(kept.started, format=SCHEMA.format)
        self._left = self._file.lines  # if rewriting fails, it is not retried at once
        self._file.rewrite(kept.entries())
        self.pairs, self._left = kept, self._file.lines


@contextmanager
def open_journal(output: Path) -> Iterator[Journal]:
    """Opens or creates the journal of ``output``. Only one watcher at a time may use it.

    Raises:
        UsageError: Another watcher is using the output folder, or a line of the journal is damaged.
        StorageError: The journal cannot be read or written.
    """
    busy = f"another watcher is using {output}; stop it, or choose another -o"
    with jsonl.open_journal(output / JOURNAL, SCHEMA, busy) as file:
        yield Journal(file)
