"""Which outputs of a folder are written, kept in the folder until all are, so that a killed run can be resumed.

``OUT/.progress/`` holds ``journal.jsonl``: by what the masks are made, then a line for each few masks, written when
they are whole on the disk. Then they get their names; those that a killed run left without get theirs later.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from misgnet_runtime.callables import Mask
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.jobs.journal import tuned_since
from misgnet_runtime.raster.dataset import Source
from misgnet_runtime.raster.images import write_mask
from misgnet_runtime.storage.atomic import publish, refuse_existing, resumable_errors, sync
from misgnet_runtime.storage.jsonl import FileName, Journal, JournalSchema, difference, open_journal
from misgnet_runtime.storage.schema import Count, Struct

Stamp = tuple[int, int, int, int]


class Header(Struct, frozen=True):
    """By what masks are made, by the words a user knows it by."""

    format: int
    settings: dict[str, str]


class Written(Struct, frozen=True):
    """A mask: its pair's name, the state of both files (sizes in bytes, times of change in ns), and its pixels.

    ``suffix``: .png for a mask of images, .tif for the change raster of two GeoTIFFs.
    """

    name: FileName
    stamp: Stamp
    pixels: Count
    changed: Count
    nodata: Count = 0
    suffix: Literal[".png", ".tif"] = ".png"

    @property
    def file(self) -> str:
        """The name of the output."""
        return f"{self.name}{self.suffix}"


class _Line(Struct, frozen=True):
    masks: tuple[Written, ...]


Entry = Header | _Line
SCHEMA: JournalSchema[Entry] = JournalSchema(
    header=Header, entry=_Line, formats=(1, 2), advice="start over with --force"
)


@dataclass(frozen=True)
class Record:
    """The open record of ``output``: what is written, by name, and where more is added."""

    output: Path
    journal: Journal[Entry]
    written: dict[str, Written]

    def write(self, masks: Sequence[tuple[Written, Mask]]) -> None:
        """Give masks, bool (H, W), their names; StorageError where the disk refuses, and the others stay."""
        places = [progress_folder(self.output) / f"{about.name}.png" for about, _ in masks]
        with resumable_errors(self.output):
            for place, (_, mask) in zip(places, masks, strict=True):
                part = place.with_suffix(".part")  # under its mask's name a file is whole
                write_mask(part, mask)
                sync(part)
                part.replace(place)
        self.note([about for about, _ in masks])

    def note(self, masks: Sequence[Written]) -> None:
        """Record outputs that are whole in :func:`progress_folder`, and give them their names."""
        self.journal.append(_Line(tuple(masks)))
        self.publish(masks)

    def publish(self, masks: Sequence[Written]) -> None:
        """Give those of ``masks`` their names that have none yet; all are whole."""
        with resumable_errors(self.output):
            for about in masks:
                place = progress_folder(self.output) / about.file
                if place.exists():
                    publish(place, self.output / place.name)
        self.written.update((about.name, about) for about in masks)


def progress_folder(output: Path) -> Path:
    return output / ".progress"


def stamp_of(source: Source) -> Stamp:
    """The state of a pair's files; InputError where one is gone."""
    try:
        before, after = source.before.stat(), source.after.stat()
    except OSError as error:
        raise InputError(f"image {error.filename} cannot be read: {error.strerror}") from error
    return before.st_size, before.st_mtime_ns, after.st_size, after.st_mtime_ns


@contextmanager
def open_record(output: Path, settings: dict[str, str], outputs: Mapping[str, str], force: bool) -> Iterator[Record]:
    """Open the record of ``output``, created where there is none; it is removed when the block succeeds.

    Args:
        output: the folder of the outputs.
        settings: by what they are made.
        outputs: the name of each pair's output, by the pair's name.
        force: start over where the record is of other settings, or cannot be read.

    Raises:
        UsageError: where another run is at work, the record is damaged or of other settings, or an output exists that
            no run of these wrote.
        StorageError: where the disk refuses.
    """
    folder, header = progress_folder(output), Header(SCHEMA.format, settings)
    if not folder.exists():
        _refuse(output, outputs, {}, force)
    busy = f"another run is writing {output}; wait for it, or choose another -o"
    with open_journal(folder / "journal.jsonl", SCHEMA, busy, force=force) as journal:
        lines = _resumed(journal.entries, header, output, force)
        named = {mask.name: mask for line in lines or () for mask in line.masks}
        _refuse(output, outputs, named, force)
        if lines is None:
            with resumable_errors(folder):
                _clear(folder)
            journal.start_over(header)
        elif journal.entries[0] != header:  # an older version's: its lines are of this one from here on
            journal.rewrite([header, *lines])
        record = Record(output, journal, named)
        record.publish(lines[-1].masks if lines else ())
        yield record
        shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove what an interrupted run of other settings left beside the journal."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix in (".tif", ".png", ".part"):
            path.unlink()


def _refuse(output: Path, outputs: Mapping[str, str], own: dict[str, Written], force: bool) -> None:
    for pair, name in outputs.items():
        if pair not in own or own[pair].file != name:
            refuse_existing(output / name, force)


def _resumed(entries: Sequence[Entry], asked: Header, output: Path, force: bool) -> list[_Line] | None:
    """The lines of a run like this one; None where there is none, or another run's may be replaced."""
    found = entries[0] if entries else None
    if not isinstance(found, Header):
        return None
    lines = [line for line in entries if isinstance(line, _Line)]
    words = difference(found.settings, asked.settings)
    if words and lines and not force:
        advice = tuned_since(found.settings, asked.settings) or "rerun the same command to resume"
        raise UsageError(f"{output} was started with {words}; {advice}, or start over with --force")
    return None if words else lines
