"""``prepare.jsonl``: what was made from what. A header line, then a line for each unit that is finished.

Lines are only ever appended. A line without its end was being written when a run was killed: it does not count.
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
ANEW = "--force prepares everything anew"

Dataset = Literal["levir", "sysu", "whu"]


class Header(Struct, frozen=True):
    """What the tiles of a folder have in common. ``seed`` to ``rasters`` are the scene's alone."""

    format: int
    dataset: Dataset
    tile: int
    splits: dict[str, Count]  # image pairs, or tiles of the scene
    seed: int | None = None
    edges: Edges | None = None
    size: tuple[int, int] | None = None  # height and width in pixels
    rasters: dict[str, Sha256] = field(default_factory=dict)


class Done(Struct, frozen=True):
    """A finished unit."""

    unit: str
    sources: tuple[Sha256, ...]
    tiles: tuple[str, ...]  # split/name, without the suffix
    sha256: Sha256  # over the bytes of its tiles' files
    changed: dict[str, Count]  # changed pixels of its tiles, by split


SCHEMA: JournalSchema[Header | Done] = JournalSchema(
    header=Header,
    entry=Done,
    formats=(1,),
    advice="choose another -o, or prepare everything anew with --force",
    damage=InputError,
)


@dataclass(frozen=True)
class Record:
    """The open record: what is finished, and where more is added."""

    done: dict[str, Done]
    journal: Journal[Header | Done]

    def add(self, done: Done) -> None:
        """Note that a unit is finished. Its tiles must be in place."""
        self.journal.append(done, sync=False)
        self.done[done.unit] = done


@contextmanager
def open_record(folder: Path, header: Header, rasters: Mapping[str, Path]) -> Iterator[Record]:
    """Open the record of ``folder``, created with ``header`` where there is none.

    Args:
        folder: of the tiles.
        header: what they have in common.
        rasters: paths for the messages.

    Raises:
        UsageError: where the folder was prepared with other settings, another run is at work, or the record is of
            another format or another program.
        InputError: where the sources are others or a line is damaged; then nothing is changed.
    """
    busy = f"another run is preparing {folder}; wait for it, or choose another -o"
    with open_journal(folder / RECORD, SCHEMA, busy) as journal:
        if journal.entries:
            _refuse_another_run(journal.entries[0], header, folder, rasters)
        else:
            journal.append(header, sync=False)
        yield Record({entry.unit: entry for entry in journal.entries if isinstance(entry, Done)}, journal)
        journal.append()  # all lines are on the disk


def _refuse_another_run(found: Header | Done, asked: Header, folder: Path, rasters: Mapping[str, Path]) -> None:
    assert isinstance(found, Header)
    if words := difference(*map(_settings, (found, asked))):
        raise UsageError(
            f"{folder} was prepared with {words}; choose another -o, or prepare everything anew with --force"
        )
    for role, path in rasters.items():
        if found.rasters.get(role) != asked.rasters[role]:
            raise InputError(f"the {role} raster {path} is another than when {folder} was begun; {ANEW}")
    if found != asked:
        raise InputError(
            f"the source had {_shown(found.splits)} when {folder} was begun, and has {_shown(asked.splits)}; {ANEW}"
        )


def _settings(header: Header) -> dict[str, str]:
    return {name: str(getattr(header, name)) for name in ("dataset", "tile", "seed", "edges")}


def _shown(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in splits.items())
