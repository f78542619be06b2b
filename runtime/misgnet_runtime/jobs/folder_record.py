"""Records which outputs of a folder are written, so that a killed run can be resumed; removed when all are.

``OUT/.progress/journal.jsonl`` states the settings, then has a line for every few masks, written when these are
complete on disk. They are renamed after that; the next run renames those that a killed run left behind.
"""

from __future__ import annotations

import os
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
    """States the settings that the outputs depend on."""

    format: int
    settings: dict[str, str]  # the keys appear in messages


class Written(Struct, frozen=True):
    """An output that was written."""

    name: FileName  # of the pair
    stamp: Stamp  # sizes (bytes) and modification times (ns) of both input files
    pixels: Count
    changed: Count
    nodata: Count = 0
    suffix: Literal[".png", ".tif"] = ".png"  # .png for a mask of images, .tif for the change raster of two GeoTIFFs

    @property
    def file(self) -> str:
        """Name of the output file."""
        return f"{self.name}{self.suffix}"


class _Line(Struct, frozen=True):
    masks: tuple[Written, ...]


Entry = Header | _Line
SCHEMA: JournalSchema[Entry] = JournalSchema(
    header=Header, entry=_Line, formats=(1, 2), advice="start over with --force"
)


@dataclass(frozen=True)
class Record:
    """The open record of an output folder."""

    output: Path
    journal: Journal[Entry]
    written: dict[str, Written]  # by the pair's name
    skipped: frozenset[str] = frozenset()  # pairs whose outputs other runs wrote, which are left as they are

    def write(self, masks: Sequence[tuple[Written, Mask, Mapping[str, str]]]) -> None:
        """Writes masks, bool (H, W), with tags, and records them; after a StorageError, masks written before stay."""
        paths = [progress_folder(self.output) / f"{about.name}.png" for about, _, _ in masks]
        with resumable_errors(self.output):
            for path, (_, mask, tags) in zip(paths, masks, strict=True):
                part = path.with_suffix(".part")  # a file with the mask's name is always complete
                write_mask(part, mask, tags)
                sync(part)
                part.replace(path)
        self.note([about for about, _, _ in masks])

    def note(self, masks: Sequence[Written]) -> None:
        """Records outputs that are complete in :func:`progress_folder`, then renames them."""
        self.journal.append(_Line(tuple(masks)))
        self.publish(masks)

    def publish(self, masks: Sequence[Written]) -> None:
        """Moves those of ``masks`` still in the progress folder to the output folder; all are complete."""
        with resumable_errors(self.output):
            for about in masks:
                path = progress_folder(self.output) / about.file
                if path.exists():
                    publish(path, self.output / path.name)
        self.written.update((about.name, about) for about in masks)


def progress_folder(output: Path) -> Path:
    return output / ".progress"


def stamp_of(source: Source) -> Stamp:
    """Returns sizes and modification times of a pair's files; raises InputError if one cannot be read."""
    try:
        before, after = source.before.stat(), source.after.stat()
    except OSError as error:
        raise InputError(f"image {error.filename} cannot be read: {error.strerror}") from error
    return before.st_size, before.st_mtime_ns, after.st_size, after.st_mtime_ns


@contextmanager
def open_record(
    output: Path, settings: dict[str, str], outputs: Mapping[str, str], force: bool, *, skip_existing: bool = False
) -> Iterator[Record]:
    """Opens or creates the record of ``output``; it is removed when the block succeeds.

    Args:
        output: The folder of the outputs.
        settings: The settings that the outputs depend on.
        outputs: The file name of each pair's output, by the pair's name.
        force: Start over if the record has other settings or cannot be read.
        skip_existing: Leave outputs that are not in the record as they are, instead of refusing to start.

    Raises:
        UsageError: Another run is writing to ``output``, the record is damaged or has other settings, or an output
            exists that is not in the record.
        StorageError: A write fails.
    """
    folder, header = progress_folder(output), Header(SCHEMA.format, settings)
    if not folder.exists() and not skip_existing:
        _refuse(output, outputs, {}, force)
    busy = f"another run is writing {output}; wait for it, or choose another -o"
    with open_journal(folder / "journal.jsonl", SCHEMA, busy, force=force) as journal:
        lines = _resumed(journal.entries, header, output, force)
        named = {mask.name: mask for line in lines or () for mask in line.masks}
        skipped = _foreign(output, outputs, named) if skip_existing else []
        _refuse(output, {pair: name for pair, name in outputs.items() if pair not in skipped}, named, force)
        if lines is None:
            with resumable_errors(folder):
                _clear(folder)
            journal.start_over(header)
        elif journal.entries[0] != header:  # written by an older version: convert it to this one's format
            journal.rewrite([header, *lines])
        record = Record(output, journal, named, frozenset(skipped))
        record.publish(lines[-1].masks if lines else ())
        yield record
        shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Removes the files that an interrupted run with other settings left next to the journal."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix in (".tif", ".png", ".part"):
            path.unlink()


def _refuse(output: Path, outputs: Mapping[str, str], own: dict[str, Written], force: bool) -> None:
    for pair in _foreign(output, outputs, own):
        refuse_existing(output / outputs[pair], force)


def _foreign(output: Path, outputs: Mapping[str, str], own: dict[str, Written]) -> list[str]:
    """Returns the pairs whose outputs exist, but are not in the record ``own``."""
    others = [pair for pair, name in outputs.items() if pair not in own or own[pair].file != name]
    return [pair for pair in others if os.path.lexists(output / outputs[pair])]


def _resumed(entries: Sequence[Entry], asked: Header, output: Path, force: bool) -> list[_Line] | None:
    """Returns the lines of an interrupted run with equal settings; None if there is none or it may be replaced."""
    found = entries[0] if entries else None
    if not isinstance(found, Header):
        return None
    lines = [line for line in entries if isinstance(line, _Line)]
    changes = difference(found.settings, asked.settings)
    if changes and lines and not force:
        advice = tuned_since(found.settings, asked.settings) or "rerun the same command to resume"
        raise UsageError(f"{output} was started with {changes}; {advice}, or start over with --force")
    return None if changes else lines
