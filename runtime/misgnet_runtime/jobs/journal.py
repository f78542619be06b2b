"""Saves the progress of a scene next to its output, so that a killed run can be resumed.

The folder ``.CHANGE.tif.progress/`` holds a raw file and ``journal.jsonl``. The raw file is written from its start in
units of equal size. The journal's first line states what is computed; then follows one line, with a checksum, for each
band of units whose bytes are on disk. The raw file of a map is ``probability.raw`` (float32, row by row, NaN for
nodata), that of features is ``features.raw`` (see :mod:`misgnet_runtime.jobs.series.features`). No program mistakes
these formats for a finished result.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from misgnet_runtime.errors import InputError, MisgnetError, StorageError, UsageError
from misgnet_runtime.storage import jsonl
from misgnet_runtime.storage.atomic import resumable_errors
from misgnet_runtime.storage.jsonl import JournalSchema, difference, read_journal, write_all
from misgnet_runtime.storage.schema import Count, Struct

_JOURNAL = "journal.jsonl"
_PART = 1 << 20
# Settings of a map that misgnet-run tune chooses (compile: only the engine) -> the option that fixes them.
_TUNED = {"--batch": "--batch", "--streams": "--streams", "the engine": "--engine"}


class Header(Struct, frozen=True, tag="scene"):
    """Identifies the run: a journal with another header belongs to another run."""

    format: int
    count: Count  # units of the raw file: rows of a map, or tiles' features
    size: Count  # bytes of a unit
    settings: dict[str, str]  # the keys appear in messages


@dataclass(frozen=True)
class Raw:
    """Describes the raw file of a run."""

    name: str
    count: int  # units
    size: int  # bytes of a unit
    description: str  # begins the message about a full disk: "the scene has ... px, and its map"

    def header(self, settings: dict[str, str]) -> Header:
        return Header(SCHEMA.format, self.count, self.size, settings)


class Band(Struct, frozen=True, tag="band"):
    """States that the units from the end of the previous band to ``stop`` are on disk."""

    stop: Count
    crc32: Count
    holes: tuple[tuple[str, Count, Count, Count, Count], ...] = ()  # unreadable blocks found since the previous band


class Publishing(Struct, frozen=True, tag="publishing"):
    """States that all outputs are complete and being renamed: those that exist were written by this run."""


Entry = Header | Band | Publishing
SCHEMA: JournalSchema[Entry] = JournalSchema(
    header=Header, entry=Band | Publishing, formats=(2,), advice="start over with --restart"
)


class Journal:
    """An open journal. Not safe for several threads at once."""

    def __init__(self, file: jsonl.Journal[Entry], raw: FileIO, header: Header) -> None:
        self._file, self._raw, self._header = file, raw, header
        self.bands: list[Band] = []
        self.publishing = False

    @property
    def path(self) -> Path:
        """The raw file."""
        return Path(str(self._raw.name))

    @property
    def finished(self) -> int:
        """Number of units on disk."""
        return self.bands[-1].stop if self.bands else 0

    @property
    def unreadable(self) -> frozenset[tuple[str, int, int, int, int]]:
        """Unreadable blocks recorded so far."""
        return frozenset(block for band in self.bands for block in band.holes)

    def add(self, parts: Sequence[NDArray[Any]], unreadable: tuple[tuple[str, int, int, int, int], ...]) -> None:
        """Writes the next units to disk, one band for each of ``parts`` (units, ...), then records the bands."""
        bands: list[Band] = []
        with resumable_errors(self.path):
            self._raw.seek(self.finished * self._header.size)
            for part in parts:
                data = part.reshape(-1).view(np.uint8).data
                stop = (bands[-1].stop if bands else self.finished) + len(part)
                bands.append(Band(stop, zlib.crc32(data), unreadable))
                write_all(self._raw, data)
            os.fsync(self._raw)
        self._file.append(*bands)
        self.bands += bands

    def complete(self, footer: bytes) -> None:
        """Appends ``footer`` to the raw file, whose units are all on disk."""
        with resumable_errors(self.path):
            self._raw.truncate(self.finished * self._header.size)
            self._raw.seek(0, os.SEEK_END)
            write_all(self._raw, memoryview(footer))
            os.fsync(self._raw)

    def publish(self) -> None:
        """Records that all outputs are complete and about to be renamed."""
        self._file.append(Publishing())
        self.publishing = True

    def resume(self, output: Path) -> None:
        """Keeps the bands whose bytes are on disk and drops the others; raises UsageError for another run's journal."""
        entries = self._file.entries
        bands = [entry for entry in entries if isinstance(entry, Band)]
        if bands:  # a journal without finished work may belong to any run
            _refuse_another_run(entries[0], self._header, output)
        self.bands = _whole_bands(self._raw, self._header, bands)
        if not bands or len(self.bands) < len(bands):
            self._file.start_over(self._header, *self.bands)
        else:
            self.publishing = any(isinstance(entry, Publishing) for entry in entries)


def progress_folder(output: Path) -> Path:
    return output.parent / f".{output.name}.progress"


def raw_map(height: int, width: int) -> Raw:
    """Returns the description of a map's raw file."""
    return Raw("probability.raw", height, width * 4, f"the scene has {width:,} x {height:,} px, and its map")


@contextmanager
def open_journal(output: Path, raw: Raw, settings: dict[str, str], *, restart: bool) -> Iterator[Journal]:
    """Opens or creates the journal of ``output``; with ``restart``, saved progress is discarded.

    Raises:
        UsageError: Another run is writing ``output``, or the journal is damaged, has another format, or belongs to
            another input, bundle or option.
        InputError: The disk has no room for the raw file, or a write fails.
    """
    folder, header = progress_folder(output), raw.header(settings)
    check_room(output, raw)
    busy = f"another run is writing {output}; wait for it, or choose another -o"
    with jsonl.open_journal(folder / _JOURNAL, SCHEMA, busy, force=restart) as file:
        with resumable_errors(folder):
            (folder / raw.name).touch()
        with (folder / raw.name).open("r+b", buffering=0) as handle:
            journal = Journal(file, handle, header)
            if restart:
                file.start_over(header)
            else:
                journal.resume(output)
            yield journal


def discard_progress(output: Path) -> None:
    """Removes the progress folder of a finished run, the large raw file first, so that a kill leaves little behind.

    Errors are ignored: a leftover hidden folder does not invalidate the results.
    """
    for path in progress_folder(output).glob("*.raw"):
        with suppress(OSError):
            path.unlink()
    shutil.rmtree(progress_folder(output), ignore_errors=True)


def can_resume(output: Path) -> bool:
    """Returns whether there is saved progress to resume, not only leftovers of a run that was almost finished."""
    return (progress_folder(output) / _JOURNAL).exists() and not was_renamed(output)


def was_renamed(output: Path) -> bool:
    """Returns whether a run was killed after ``output`` got its final name, but before its progress was discarded."""
    if any(progress_folder(output).glob("*.raw")):
        return False
    try:
        return was_published(output)
    except MisgnetError:  # an unreadable journal is reported when it is opened without --restart
        return False


def was_published(output: Path) -> bool:
    """Returns whether the saved progress of ``output`` states that its outputs were complete."""
    return any(isinstance(entry, Publishing) for entry in _read(output))


def finished_units(output: Path) -> int:
    """Returns how many units (rows of a map, or tiles' features) an interrupted run of ``output`` left on disk."""
    try:
        bands = [entry for entry in _read(output) if isinstance(entry, Band)]
    except MisgnetError:  # an unreadable journal counts as no progress
        return 0
    return bands[-1].stop if bands else 0


def _read(output: Path) -> list[Entry]:
    return read_journal(progress_folder(output) / _JOURNAL, SCHEMA)


def check_room(output: Path, raw: Raw) -> None:
    """Raises InputError if the disk of ``output`` can never hold the raw file, StorageError if it is too full now."""
    path = progress_folder(output) / raw.name
    folder = next(parent for parent in path.parents if parent.exists())
    there = path.stat().st_size if path.exists() else 0
    usage = shutil.disk_usage(folder)
    needed = raw.count * raw.size - there
    if needed > usage.free:
        error = InputError if needed > usage.total else StorageError  # StorageError: freeing some space may help
        raise error(
            f"{raw.description} needs {decimal(needed)} next to the output, but only {decimal(usage.free)} are free; "
            "check that the raster's header is not damaged, then free some space, choose another -o, or crop the scene"
        )


def _refuse_another_run(found: Entry, asked: Header, output: Path) -> None:
    assert isinstance(found, Header)
    if changes := difference(found.settings, asked.settings):
        advice = tuned_since(found.settings, asked.settings) or "rerun the same command to resume"
        raise UsageError(f"{output} was started with {changes}; {advice}, or start over with --restart")
    if found != asked:
        raise UsageError(f"{output} was started for a scene of another size; start over with --restart")


def tuned_since(then: dict[str, str], now: dict[str, str]) -> str | None:
    """Returns advice for resuming a run if only tuned settings differ: "... pass --batch 1 to resume"; else None."""
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if not changed or not set(changed) <= _TUNED.keys() & then.keys() & now.keys():
        return None
    old, new = ({_TUNED[name]: settings[name].partition(" on ")[0] for name in changed} for settings in (then, now))
    if any(old[option] == new[option] for option in old):  # an engine on another device
        return None
    given = " ".join(f"{option} {value}" for option, value in old.items())
    who = "misgnet-run tune or compile" if "--engine" in old else "misgnet-run tune"
    return f"{who} chooses {' and '.join(old)} unless they are given: pass {given} to resume"


def _whole_bands(raw: FileIO, header: Header, bands: list[Band]) -> list[Band]:
    """Returns the leading bands whose bytes match their checksums."""
    whole: list[Band] = []
    raw.seek(0)
    for band in bands:
        start = whole[-1].stop if whole else 0
        if not start < band.stop <= header.count or _crc32(raw, (band.stop - start) * header.size) != band.crc32:
            break
        whole.append(band)
    return whole


def _crc32(raw: FileIO, size: int) -> int | None:
    """Returns the CRC-32 of the next ``size`` bytes, or None if there are fewer.

    Reads in parts, since a damaged journal may state any size.
    """
    found = 0
    while size:
        part = raw.read(min(size, _PART))
        if not part:
            return None
        found, size = zlib.crc32(part, found), size - len(part)
    return found
