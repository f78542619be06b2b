"""``batch.jsonl`` in the output folder: what became of which scene. Lines are only ever appended.

Each part of a table that is processed in shares has a record of its own, ``batch-3-of-8.jsonl``; all of them are read.
``started`` (the bundle), then for each scene ``begun``, and ``done``, ``failed``, or ``returned`` where the run was
interrupted. A scene that was begun and has no end was in the hands of something that died.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from heapq import merge
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.batch.table import Shard
from misgnet_runtime.storage.jsonl import Journal, JournalSchema, is_held, open_journal, read_journal
from misgnet_runtime.storage.schema import Sha256, Struct

_NAME = re.compile(r"batch(?:-(\d+)-of-(\d+))?\.jsonl")


Moment = Annotated[datetime, Meta(tz=True)]  # those of several records are put in order
_Whole = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Started(Struct, frozen=True, tag="started"):
    time: Moment
    format: int
    bundle: Sha256


class Begun(Struct, frozen=True, tag="begun"):
    """``key``: as :meth:`Scene.key`; ``outputs``: that are the run's own from here on."""

    time: Moment
    scene: str
    key: Sha256
    outputs: tuple[str, ...]


class Returned(Struct, frozen=True, tag="returned"):
    time: Moment
    scene: str


class Done(Struct, frozen=True, tag="done"):
    """``figures``: of the report; ``worker``: where it was done."""

    time: Moment
    scene: str
    key: Sha256
    outputs: Annotated[tuple[str, ...], Meta(min_length=1)]
    attempts: _Whole
    worker: str
    figures: dict[str, Any]

    def __post_init__(self) -> None:
        msgspec.convert(self.figures, _Figures)


class Failed(Struct, frozen=True, tag="failed"):
    time: Moment
    scene: str
    attempts: _Whole
    message: str


class _Figures(msgspec.Struct):
    """Of a report, what the table of results is made of."""

    changed_share: float | None
    unread: tuple[_Whole, _Whole]
    nodata_share: float | None = None
    valid_share: float | None = None
    unreadable_share_before: float | None = None
    unreadable_share_after: float | None = None
    seconds: float | None = None
    polygons: _Whole | None = None
    height: _Whole | None = None
    width: _Whole | None = None
    tiles: _Whole | None = None
    resumed: _Whole | None = None
    engine: str | None = None


Entry = Started | Begun | Returned | Done | Failed
End = Done | Failed
SCHEMA: JournalSchema[Entry] = JournalSchema(
    header=Started,
    entry=Entry,
    formats=(1,),
    advice="choose another -o, or move it away: then its scenes count as not processed",
)


class Record:
    """An open record: how scenes ended the last time, and how often they were begun since, without an end."""

    def __init__(self, journal: Journal[Entry], entries: Iterable[Entry]) -> None:
        self._journal = journal
        self.bundle: str | None = None
        self.ended: dict[str, End] = {}
        self.begun: Counter[str] = Counter()
        self.own: set[str] = set()  # outputs that some run of this folder began
        for entry in entries:
            self._take(entry)

    def add(self, entry: Entry) -> None:
        """Put an entry on the disk; StorageError where it refuses, and then a later call may be heard."""
        sync = isinstance(entry, Done)  # the others may be lost with the machine: then less counts as tried
        self._journal.append(entry, sync=sync)
        self._take(entry)

    def _take(self, entry: Entry) -> None:
        if isinstance(entry, Started):
            self.bundle = entry.bundle
            return
        if isinstance(entry, Begun):
            self.begun[entry.scene] += 1
            self.own.update(entry.outputs)
        elif isinstance(entry, Returned):
            self.begun[entry.scene] -= 1
        else:
            self.begun[entry.scene] = 0
            self.ended[entry.scene] = entry


@contextmanager
def open_record(output: Path, shard: Shard) -> Iterator[Record]:
    """The record of a part of ``output``'s scenes, begun where there is none; one run at a time may hold a scene.

    UsageError where another run of the same scenes is at work or a line is damaged; StorageError where the disk
    refuses.
    """
    path = output / f"batch{shard.suffix}.jsonl"
    busy = f"another run is at work on these scenes of {output}; wait for it, or choose another -o"
    with open_journal(path, SCHEMA, busy) as journal:
        others = [read_journal(other, SCHEMA) for other in _others(output, path, shard)]
        yield Record(journal, merge(journal.entries, *others, key=lambda entry: entry.time))


def _others(output: Path, path: Path, shard: Shard) -> list[Path]:
    """The records of other parts; UsageError where a run is at work on one that shares scenes with ``shard``."""
    found = []
    for other in sorted(output.iterdir()):
        name = _NAME.fullmatch(other.name)
        if name is None or other == path or not other.is_file():
            continue
        if int(name[2] or 1) != shard.count and is_held(other):
            raise UsageError(f"another run is at work on some of these scenes ({other}); wait for it to end")
        found.append(other)
    return found
