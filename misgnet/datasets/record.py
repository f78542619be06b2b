"""Reads and writes ``prepare.jsonl``, the record of a data set: a header line, then one line per finished unit.

Lines are only appended. An incomplete last line comes from a killed run and is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec import field

from misgnet.datasets.split import Edges
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.storage.jsonl import Journal, JournalSchema, difference, open_journal
from misgnet_runtime.storage.schema import Count, Sha256, Struct

RECORD = "prepare.jsonl"
START_OVER = "prepare all tiles again with --force"

Dataset = Literal["levir", "sysu", "whu"]


class Header(Struct, frozen=True):
    """Settings and sources that all tiles of a folder share; the optional fields apply only to a scene (WHU-CD)."""

    format: int
    dataset: Dataset
    tile: int  # side of a tile, pixels
    splits: dict[str, Count]  # number of image pairs, or of tiles of the scene, by split
    seed: int | None = None  # of the random split
    edges: Edges | None = None
    size: tuple[int, int] | None = None  # height and width in pixels
    rasters: dict[str, Sha256] = field(default_factory=dict)  # by role


class Done(Struct, frozen=True):
    """A finished unit."""

    unit: str  # its key
    sources: tuple[Sha256, ...]
    tiles: tuple[str, ...]  # split/name, without the suffix
    sha256: Sha256  # of the files of its tiles
    changed: dict[str, Count]  # number of changed pixels, by split


SCHEMA: JournalSchema[Header | Done] = JournalSchema(
    header=Header,
    entry=Done,
    formats=(1,),
    advice=f"choose another -o, or {START_OVER}",
    damage=InputError,
)


@dataclass(frozen=True)
class Record:
    """An open record."""

    done: dict[str, Done]  # finished units by key
    journal: Journal[Header | Done]

    def add(self, done: Done) -> None:
        """Records a finished unit, whose tiles must have been written."""
        self.journal.append(done, sync=False)
        self.done[done.unit] = done


@contextmanager
def open_record(folder: Path, header: Header, rasters: Mapping[str, Path]) -> Iterator[Record]:
    """Opens the record of ``folder``; creates it with ``header`` if there is none.

    Args:
        folder: Folder of the tiles.
        header: Settings and sources of this run.
        rasters: Paths of the rasters by role, for messages.

    Raises:
        UsageError: If the folder was prepared with other settings, another run is using it, or the record has another
            format or belongs to another program.
        InputError: If the sources have changed or a line is damaged; nothing is changed in that case.
    """
    busy = f"another run is preparing {folder}; wait for it, or choose another -o"
    with open_journal(folder / RECORD, SCHEMA, busy) as journal:
        if journal.entries:
            _refuse_another_run(journal.entries[0], header, folder, rasters)
        else:
            journal.append(header, sync=False)
        yield Record({entry.unit: entry for entry in journal.entries if isinstance(entry, Done)}, journal)
        journal.append()  # flushes all lines to the disk


def _refuse_another_run(found: Header | Done, wanted: Header, folder: Path, rasters: Mapping[str, Path]) -> None:
    assert isinstance(found, Header)
    if settings := difference(*map(_settings, (found, wanted))):
        raise UsageError(f"{folder} was prepared with {settings}; choose another -o, or {START_OVER}")
    for role, path in rasters.items():
        if found.rasters.get(role) != wanted.rasters[role]:
            raise InputError(f"the {role} raster {path} has changed since {folder} was started; {START_OVER}")
    if found != wanted:
        raise InputError(
            f"the source had {_shown(found.splits)} when {folder} was started, and now has {_shown(wanted.splits)}; "
            f"{START_OVER}"
        )


def _settings(header: Header) -> dict[str, str]:
    return {name: str(getattr(header, name)) for name in ("dataset", "tile", "seed", "edges")}


def _shown(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in splits.items())
