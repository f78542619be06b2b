"""``watch.jsonl``: what a watcher did with which pair.

``started`` (the bundle, the engine, the options), then for each pair ``begun``, ``read`` (the digests of its files) and
``done``, ``failed`` or ``kept``. Between begun and done stands ``complete``: the results are whole in ``.working/`` and
are about to get their names. ``unclean``: the process ended in mid-pair, without a signal to stop. Compaction leaves
one line, ``ended``, of a pair that has ended.
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
    """A file that was read: its size in bytes and the time of its last write in ns."""

    name: str
    size: Count
    mtime_ns: int
    # Known as soon as the file was read.
    sha256: Sha256 | None = None


State = tuple[tuple[str, int, int], ...]


class Started(Struct, frozen=True, tag="started"):
    """What the pairs that follow are processed by; ``settings``: by the names a user knows them by."""

    time: datetime
    format: int
    bundle: Sha256
    engine: str
    settings: dict[str, str]


class Begun(Struct, frozen=True, tag="begun"):
    time: datetime
    pair: str
    before: FileState
    after: FileState

    @property
    def state(self) -> State:
        """As :attr:`FilePair.state`."""
        return tuple((file.name, file.size, file.mtime_ns) for file in (self.before, self.after))

    def same_files(self, other: Begun) -> bool:
        """Whether both have equal bytes under equal names, as far as they were read."""
        ours, theirs = ([(f.name, f.sha256) for f in (begun.before, begun.after)] for begun in (self, other))
        return ours == theirs and None not in (self.before.sha256, self.after.sha256)


class Read(Struct, frozen=True, tag="read"):
    """The digests of the files of a pair that was begun, and is processed."""

    time: datetime
    pair: str
    before: Sha256
    after: Sha256


class Complete(Struct, frozen=True, tag="complete"):
    """``outputs``: names in the output folder, the last one of them published last; ``figures``: of the report."""

    time: datetime
    pair: str
    outputs: tuple[FileName, ...]
    figures: dict[str, Any]

    @property
    def incomplete(self) -> bool:
        """Whether blocks of the pair's files could not be read."""
        unread = self.figures.get("unread")
        return isinstance(unread, (list, tuple)) and any(unread)


class Done(Struct, frozen=True, tag="done"):
    time: datetime
    pair: str


class Failed(Struct, frozen=True, tag="failed"):
    time: datetime
    pair: str
    message: str


class Kept(Struct, frozen=True, tag="kept"):
    """The pair's files are others than when it ended, and its end still counts; ``same``: their bytes are equal."""

    time: datetime
    pair: str
    same: bool


class Unclean(Struct, frozen=True, tag="unclean"):
    """A process ended in mid-pair. ``attempts``: how many did so without a new finished row; ``rows``: finished."""

    time: datetime
    pair: str
    attempts: Count
    rows: Count


class Ended(Struct, frozen=True, tag="ended"):
    """How a pair ended the last time.

    ``done``: how often it was processed to its end; ``incomplete``: with blocks that could not be read.
    """

    time: datetime
    pair: str
    before: FileState
    after: FileState
    outcome: Literal["done", "failed"]
    message: str = ""
    done: Count = 0
    incomplete: bool = False

    @property
    def begun(self) -> Begun:
        return Begun(self.time, self.pair, self.before, self.after)


Entry = Started | Begun | Read | Complete | Done | Failed | Kept | Unclean | Ended
SCHEMA: JournalSchema[Entry] = JournalSchema(
    header=Started,
    entry=Entry,
    formats=(1, 2),
    advice="choose another -o, or move it away: then what lies there counts as not processed",
)


@dataclass
class Unfinished:
    """A pair that was begun and has not ended."""

    begun: Begun
    complete: Complete | None = None
    unclean: Unclean | None = None

    @property
    def is_read(self) -> bool:
        """Whether it was decided that the pair is processed."""
        return self.begun.before.sha256 is not None

    def entries(self) -> Iterator[Entry]:
        """The lines that say the same."""
        yield self.begun
        yield from (entry for entry in (self.complete, self.unclean) if entry is not None)


@dataclass
class Pairs:
    """What the lines of a journal say: how each pair ended, and which ones have not."""

    started: Started | None = None
    ended: dict[str, Ended] = field(default_factory=dict)
    unfinished: dict[str, Unfinished] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        if isinstance(entry, Started):
            self.started = entry
        elif isinstance(entry, Ended):
            self.ended[entry.pair] = entry
        elif isinstance(entry, Begun):
            self.unfinished[entry.pair] = Unfinished(entry)
        elif (pair := self.unfinished.get(entry.pair)) is None:  # a line of a damaged journal
            return
        elif isinstance(entry, Read):
            begun = pair.begun
            before, after = replace(begun.before, sha256=entry.before), replace(begun.after, sha256=entry.after)
            pair.begun = replace(begun, before=before, after=after)
        elif isinstance(entry, Complete):
            pair.complete = entry
        elif isinstance(entry, Unclean):
            pair.unclean = entry
        else:
            del self.unfinished[entry.pair]
            self._end(pair, entry)

    def _end(self, pair: Unfinished, end: Done | Failed | Kept) -> None:
        begun, last = pair.begun, self.ended.get(end.pair)
        if isinstance(end, Kept):
            if last is not None and end.same:
                before = replace(begun.before, sha256=last.before.sha256)
                after = replace(begun.after, sha256=last.after.sha256)
                self.ended[end.pair] = replace(last, before=before, after=after)
            return
        found = Ended(
            time=end.time,
            pair=end.pair,
            before=begun.before,
            after=begun.after,
            outcome="failed",
            done=last.done if last else 0,
        )
        if isinstance(end, Failed):
            self.ended[end.pair] = replace(found, message=end.message)
        else:
            incomplete = pair.complete is not None and pair.complete.incomplete
            self.ended[end.pair] = replace(found, outcome="done", done=found.done + 1, incomplete=incomplete)

    def entries(self) -> Iterator[Entry]:
        """The fewest lines that say the same."""
        if self.started is not None:
            yield self.started
            yield from self.ended.values()
            for pair in self.unfinished.values():
                yield from pair.entries()


class Journal:
    """An open journal: what it says of all pairs, and where more is added."""

    # Fewer lines than this are not compacted, nor fewer than twice what the last compaction left.
    LINES = 1000

    def __init__(self, file: jsonl.Journal[Entry]) -> None:
        self._file = file
        self.pairs = Pairs()
        for entry in file.entries:
            self.pairs.take(entry)
        file.entries.clear()
        self._left = 0

    def add(self, entry: Entry) -> None:
        """Put an entry on the disk; StorageError where it refuses, and then a later call may succeed."""
        self._file.append(entry, sync=not isinstance(entry, Read))  # without digests the files are read once more
        self.pairs.take(entry)

    def failed(self) -> set[str]:
        """The names of the pairs that ended so."""
        return {name for name, end in self.pairs.ended.items() if end.outcome == "failed"}

    @property
    def is_long(self) -> bool:
        """Whether compaction is worth while."""
        return self._file.lines > max(self.LINES, 2 * self._left)

    def compact(self, keep: Iterable[str]) -> None:
        """Forget all pairs but those of ``keep``, and those that are complete, and write what is left anew."""
        keep, pairs = set(keep), self.pairs
        kept = Pairs(
            pairs.started,
            {name: end for name, end in pairs.ended.items() if name in keep},
            {name: pair for name, pair in pairs.unfinished.items() if name in keep or pair.complete is not None},
        )
        if kept.started is not None:  # its lines are of this version from here on
            kept.started = replace(kept.started, format=SCHEMA.format)
        self._left = self._file.lines  # where the disk refuses, another time
        self._file.rewrite(kept.entries())
        self.pairs, self._left = kept, self._file.lines


@contextmanager
def open_journal(output: Path) -> Iterator[Journal]:
    """The journal of ``output``, created where there is none; one watcher at a time may hold it.

    Raises UsageError where another watcher is at work or a line is damaged, StorageError where the disk refuses.
    """
    busy = f"another watcher is at work on {output}; stop it, or choose another -o"
    with jsonl.open_journal(output / JOURNAL, SCHEMA, busy) as file:
        yield Journal(file)
