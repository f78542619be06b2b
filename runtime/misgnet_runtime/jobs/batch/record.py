"""Reads and writes ``batch.jsonl``, the append-only record of scene outcomes in the output folder.

Each shard of a table has its own record, such as ``batch-3-of-8.jsonl``; a run reads all of them. The first line is
:class:`Started`. Each attempt of a scene adds :class:`SceneStarted` and then :class:`Done`, :class:`Failed`, or, if the
run was interrupted, :class:`Returned`. A scene with a start and no outcome belonged to a run or worker that died.
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


Moment = Annotated[datetime, Meta(tz=True)]  # with a time zone, so that entries of several records can be sorted
_Whole = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Started(Struct, frozen=True, tag="started"):
    time: Moment
    format: int
    bundle: Sha256


class SceneStarted(Struct, frozen=True, tag="begun"):
    """An attempt of a scene has started."""

    time: Moment
    scene: str
    # See :meth:`Scene.key`.
    key: Sha256
    # Files that belong to the run from now on.
    outputs: tuple[str, ...]


class Returned(Struct, frozen=True, tag="returned"):
    """The run was interrupted; the attempt does not count."""

    time: Moment
    scene: str


class Done(Struct, frozen=True, tag="done"):
    """A scene has finished."""

    time: Moment
    scene: str
    key: Sha256
    outputs: Annotated[tuple[str, ...], Meta(min_length=1)]
    attempts: _Whole
    # Host name and process id.
    worker: str
    # Fields of the scene's report.
    figures: dict[str, Any]

    def __post_init__(self) -> None:
        msgspec.convert(self.figures, _Figures)


class Failed(Struct, frozen=True, tag="failed"):
    """A scene has failed."""

    time: Moment
    scene: str
    attempts: _Whole
    message: str


class _Registration(msgspec.Struct):
    """The fields of a registration."""

    rows: float
    columns: float
    inliers: _Whole
    windows: _Whole
    residual: float


class _Figures(msgspec.Struct):
    """Fields of a scene's report that the results table uses."""

    changed_share: float | None
    unread: tuple[_Whole, _Whole]
    nodata_share: float | None = None
    valid_share: float | None = None
    unreadable_share_before: float | None = None
    unreadable_share_after: float | None = None
    aoi_valid_share: float | None = None
    registration: _Registration | None = None
    seconds: float | None = None
    polygons: _Whole | None = None
    height: _Whole | None = None
    width: _Whole | None = None
    tiles: _Whole | None = None
    resumed: _Whole | None = None
    engine: str | None = None


Entry = Started | SceneStarted | Returned | Done | Failed
End = Done | Failed
SCHEMA: JournalSchema[Entry] = JournalSchema(
    header=Started,
    entry=Entry,
    formats=(1,),
    advice="choose another -o, or move the file away; its scenes then count as not processed",
)


class Record:
    """An open record: the last outcome of each scene, and the attempts since then that have no outcome."""

    def __init__(self, journal: Journal[Entry], entries: Iterable[Entry]) -> None:
        self._journal = journal
        self.bundle: str | None = None
        self.ended: dict[str, End] = {}
        self.attempts: Counter[str] = Counter()
        self.own: set[str] = set()  # outputs that a run in this folder started
        for entry in entries:
            self._take(entry)

    def add(self, entry: Entry) -> None:
        """Appends an entry to the file.

        Raises:
            StorageError: The entry cannot be written; a later call may succeed.
        """
        sync = isinstance(entry, Done)  # losing another entry in a power failure only lowers the number of attempts
        self._journal.append(entry, sync=sync)
        self._take(entry)

    def _take(self, entry: Entry) -> None:
        if isinstance(entry, Started):
            self.bundle = entry.bundle
            return
        if isinstance(entry, SceneStarted):
            self.attempts[entry.scene] += 1
            self.own.update(entry.outputs)
        elif isinstance(entry, Returned):
            self.attempts[entry.scene] -= 1
        else:
            self.attempts[entry.scene] = 0
            self.ended[entry.scene] = entry


@contextmanager
def open_record(output: Path, shard: Shard) -> Iterator[Record]:
    """Opens or creates the record of a shard in ``output``. Only one run at a time may process a scene.

    Raises:
        UsageError: Another run is processing the same scenes, or a line of the record is damaged.
        StorageError: The record cannot be read or written.
    """
    path = output / f"batch{shard.suffix}.jsonl"
    busy = f"another run is processing these scenes in {output}; wait for it, or choose another -o"
    with open_journal(path, SCHEMA, busy) as journal:
        others = [read_journal(other, SCHEMA) for other in _others(output, path, shard)]
        yield Record(journal, merge(journal.entries, *others, key=lambda entry: entry.time))


def _others(output: Path, path: Path, shard: Shard) -> list[Path]:
    """Returns the records of other shards; raises UsageError if a run is processing scenes that ``shard`` contains."""
    found = []
    for other in sorted(output.iterdir()):
        name = _NAME.fullmatch(other.name)
        if name is None or other == path or not other.is_file():
            continue
        if int(name[2] or 1) != shard.count and is_held(other):
            raise UsageError(f"another run is processing some of these scenes ({other}); wait for it to finish")
        found.append(other)
    return found
