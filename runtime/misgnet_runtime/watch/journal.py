"""``watch.jsonl``: what a watcher did with which pair. Lines are only ever appended, and on the disk when they count.

``started`` (the bundle, the engine, the options), then for each pair ``begun``, and ``done`` or ``failed``. Between
begun and done stands ``complete``: the results are whole in ``.working/`` and are about to get their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from misgnet_runtime.lines import FileName, add_line, decode_lines, line_errors, open_held
from misgnet_runtime.manifest import Count, Sha256, Struct

JOURNAL = "watch.jsonl"
FORMAT = 1


class FileState(Struct, frozen=True):
    """A file that was read: its size in bytes and the time of its last write in ns."""

    name: str
    size: Count
    mtime_ns: int
    sha256: Sha256


class Started(Struct, frozen=True, tag="started"):
    """What the pairs that follow are processed by; ``settings``: by the words a user knows them by."""

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
    def state(self) -> tuple[tuple[str, int, int], ...]:
        """As :attr:`FilePair.state`."""
        return tuple((file.name, file.size, file.mtime_ns) for file in (self.before, self.after))

    def same_files(self, other: Begun) -> bool:
        """Whether both are of equal bytes under equal names."""
        ours, theirs = ([(f.name, f.sha256) for f in (begun.before, begun.after)] for begun in (self, other))
        return ours == theirs


class Complete(Struct, frozen=True, tag="complete"):
    """``outputs``: names in the output folder, the last one of them published last; ``figures``: of the report."""

    time: datetime
    pair: str
    outputs: tuple[FileName, ...]
    figures: dict[str, Any]


class Done(Struct, frozen=True, tag="done"):
    time: datetime
    pair: str


class Failed(Struct, frozen=True, tag="failed"):
    time: datetime
    pair: str
    message: str


Entry = Started | Begun | Complete | Done | Failed


class Journal:
    """An open journal: how each pair ended, which one has not, and where more is added."""

    def __init__(self, handle: FileIO, entries: list[Entry], length: int) -> None:
        self._handle, self._length = handle, length
        self.started: Started | None = None
        self.unfinished: Begun | None = None
        self.complete: Complete | None = None
        self.ended: dict[str, tuple[Begun, Done | Failed]] = {}
        self.done: set[str] = set()  # pairs that were done at some time: their outputs are this journal's
        for entry in entries:
            self._take(entry)

    def add(self, entry: Entry) -> None:
        """Put an entry on the disk; StorageError where it refuses, and then a later call may be heard."""
        self._length = add_line(self._handle, self._length, entry)
        self._take(entry)

    def failed(self) -> set[str]:
        """The names of the pairs that ended so."""
        return {name for name, (_, end) in self.ended.items() if isinstance(end, Failed)}

    def _take(self, entry: Entry) -> None:
        if isinstance(entry, Started):
            self.started = entry
        elif isinstance(entry, Begun):
            self.unfinished = entry
        elif isinstance(entry, Complete):
            self.complete = entry
        elif self.unfinished is not None:
            self.ended[entry.pair] = self.unfinished, entry
            self.done |= {entry.pair} if isinstance(entry, Done) else set()
            self.unfinished = self.complete = None


@contextmanager
def open_journal(output: Path) -> Iterator[Journal]:
    """The journal of ``output``, begun where there is none; one watcher at a time may hold it.

    UsageError where another watcher is at work or a line is damaged, StorageError where the disk refuses.
    """
    path = output / JOURNAL
    with open_held(path, f"another watcher is at work on {output}; stop it, or choose another -o") as handle:
        yield Journal(handle, *decode_lines(handle, lambda line, number: _decode(line, number, path)))


def _decode(line: bytes, number: int, path: Path) -> Entry:
    with line_errors(path, number, "what lies there counts as not processed"):
        entry: Entry = msgspec.json.decode(line, type=Entry)
        if isinstance(entry, Started) and entry.format != FORMAT:
            raise ValueError(f"format {entry.format}")
    return entry
