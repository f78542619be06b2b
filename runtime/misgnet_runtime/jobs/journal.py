"""What is finished of a scene, kept beside its target so that a killed run can be resumed.

``.CHANGE.tif.progress/`` holds a raw file, written from its front in units of one size, and ``journal.jsonl``: what is
computed, then a line for each band of units whose bytes are on the disk, with their checksum. Of a map the raw file is
``probability.raw`` (float32, row by row, NaN without data), of features ``features.raw`` (see ``features``): no format
that anything takes for a result.
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
# What of a map's settings misgnet-run tune chooses, and the option that fixes it.
_TUNED = {"--batch": "--batch", "--streams": "--streams", "the engine": "--engine"}


class Header(Struct, frozen=True, tag="scene"):
    """What is computed: anything else is another scene's run. ``settings``: by the words a user knows them by.

    The raw file has ``count`` units of ``size`` bytes: rows of the map, or tiles' features.
    """

    format: int
    count: Count
    size: Count
    settings: dict[str, str]


@dataclass(frozen=True)
class Raw:
    """The raw file of a run: its name, its units, and what they are, for a user: "the scene has ..., and its map"."""

    name: str
    count: int
    size: int
    words: str

    def header(self, settings: dict[str, str]) -> Header:
        return Header(SCHEMA.format, self.count, self.size, settings)


class Band(Struct, frozen=True, tag="band"):
    """Units from the end of the last band to ``stop`` are on the disk; blocks that were found unreadable since."""

    stop: Count
    crc32: Count
    holes: tuple[tuple[str, Count, Count, Count, Count], ...] = ()


class Publishing(Struct, frozen=True, tag="publishing"):
    """All outputs are complete and are given their names: those that exist are this run's own."""


Entry = Header | Band | Publishing
SCHEMA: JournalSchema[Entry] = JournalSchema(
    header=Header, entry=Band | Publishing, formats=(2,), advice="start over with --restart"
)


class Journal:
    """An open journal: what is finished, and where more is added. One thread at a time."""

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
        """So many units are on the disk."""
        return self.bands[-1].stop if self.bands else 0

    @property
    def holes(self) -> frozenset[tuple[str, int, int, int, int]]:
        return frozenset(hole for band in self.bands for hole in band.holes)

    def add(self, parts: Sequence[NDArray[Any]], holes: tuple[tuple[str, int, int, int, int], ...]) -> None:
        """Put the next units on the disk, a band for each of ``parts`` (units, ...), and note that they are there."""
        bands: list[Band] = []
        with resumable_errors(self.path):
            self._raw.seek(self.finished * self._header.size)
            for part in parts:
                data = part.reshape(-1).view(np.uint8).data
                stop = (bands[-1].stop if bands else self.finished) + len(part)
                bands.append(Band(stop, zlib.crc32(data), holes))
                write_all(self._raw, data)
            os.fsync(self._raw)
        self._file.append(*bands)
        self.bands += bands

    def complete(self, footer: bytes) -> None:
        """End the raw file, all of whose units are there, by ``footer``."""
        with resumable_errors(self.path):
            self._raw.truncate(self.finished * self._header.size)
            self._raw.seek(0, os.SEEK_END)
            write_all(self._raw, memoryview(footer))
            os.fsync(self._raw)

    def publish(self) -> None:
        """Note that all outputs are complete and about to get their names."""
        self._file.append(Publishing())
        self.publishing = True

    def resume(self, output: Path) -> None:
        """Take over the bands whose bytes are on the disk, and drop the lines of others; UsageError for another run."""
        entries = self._file.entries
        bands = [entry for entry in entries if isinstance(entry, Band)]
        if bands:  # what holds no work may be of any scene
            _refuse_another_run(entries[0], self._header, output)
        self.bands = _whole_bands(self._raw, self._header, bands)
        if not bands or len(self.bands) < len(bands):
            self._file.start_over(self._header, *self.bands)
        else:
            self.publishing = any(isinstance(entry, Publishing) for entry in entries)


def progress_folder(output: Path) -> Path:
    return output.parent / f".{output.name}.progress"


def raw_map(height: int, width: int) -> Raw:
    """The raw file of a map of so many pixels."""
    return Raw("probability.raw", height, width * 4, f"the scene has {width:,} x {height:,} px, and its map")


@contextmanager
def open_journal(output: Path, raw: Raw, settings: dict[str, str], *, restart: bool) -> Iterator[Journal]:
    """Open the journal of ``output``, created where there is none; with ``restart`` it starts over.

    Raises:
        UsageError: where another run is at work, or the journal is damaged, of another format, or of another input,
            bundle or option.
        InputError: where the disk has no room for the raw file, or refuses.
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
    """Remove what a finished run needs no more, the large file first: a kill in between leaves next to nothing.

    What the disk keeps of it is hidden, and no reason to call the results a failure.
    """
    for path in progress_folder(output).glob("*.raw"):
        with suppress(OSError):
            path.unlink()
    shutil.rmtree(progress_folder(output), ignore_errors=True)


def was_begun(output: Path) -> bool:
    """Whether there is something to go on with; a kill may leave less of a run that was all but done."""
    return (progress_folder(output) / _JOURNAL).exists() and not was_named(output)


def was_named(output: Path) -> bool:
    """Whether a run of ``output`` was killed after that had its name, and before its progress was discarded."""
    if any(progress_folder(output).glob("*.raw")):
        return False
    try:
        return was_published(output)
    except MisgnetError:  # it cannot be read, which is reported by whoever opens it without --restart
        return False


def was_published(output: Path) -> bool:
    """Whether a run of ``output`` ended when its outputs were complete, and its progress is still there."""
    return any(isinstance(entry, Publishing) for entry in _read(output))


def finished_units(output: Path) -> int:
    """How many rows of a map, or tiles' features, an interrupted run of ``output`` left on the disk."""
    try:
        bands = [entry for entry in _read(output) if isinstance(entry, Band)]
    except MisgnetError:  # what cannot be read counts for nothing
        return 0
    return bands[-1].stop if bands else 0


def _read(output: Path) -> list[Entry]:
    return read_journal(progress_folder(output) / _JOURNAL, SCHEMA)


def check_room(output: Path, raw: Raw) -> None:
    """Raises InputError where the disk of ``output`` can never hold the raw file, StorageError where it is too full."""
    path = progress_folder(output) / raw.name
    folder = next(parent for parent in path.parents if parent.exists())
    there = path.stat().st_size if path.exists() else 0
    usage = shutil.disk_usage(folder)
    needed = raw.count * raw.size - there
    if needed > usage.free:
        error = InputError if needed > usage.total else StorageError  # with room made, the same call may succeed
        raise error(
            f"{raw.words} takes {decimal(needed)} beside the output, where {decimal(usage.free)} are free; is its "
            "header damaged? If not, make room, choose another -o, or cut the scene"
        )


def _refuse_another_run(found: Entry, asked: Header, output: Path) -> None:
    assert isinstance(found, Header)
    if words := difference(found.settings, asked.settings):
        advice = tuned_since(found.settings, asked.settings) or "rerun the same command to resume"
        raise UsageError(f"{output} was started with {words}; {advice}, or start over with --restart")
    if found != asked:
        raise UsageError(f"{output} was started for another size of scene; start over with --restart")


def tuned_since(then: dict[str, str], now: dict[str, str]) -> str | None:
    """Say what to give to resume a run, where nothing differs but what is tuned: "... give --batch 1 to resume"."""
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if not changed or not set(changed) <= _TUNED.keys() & then.keys() & now.keys():
        return None
    old, new = ({_TUNED[name]: settings[name].partition(" on ")[0] for name in changed} for settings in (then, now))
    if any(old[option] == new[option] for option in old):  # an engine on another device
        return None
    given = " ".join(f"{option} {value}" for option, value in old.items())
    return f"misgnet-run tune chooses {' and '.join(old)} where they are not given: give {given} to resume"


def _whole_bands(raw: FileIO, header: Header, bands: list[Band]) -> list[Band]:
    """The first bands whose bytes have their checksum."""
    whole: list[Band] = []
    raw.seek(0)
    for band in bands:
        start = whole[-1].stop if whole else 0
        if not start < band.stop <= header.count or _crc32(raw, (band.stop - start) * header.size) != band.crc32:
            break
        whole.append(band)
    return whole


def _crc32(raw: FileIO, size: int) -> int | None:
    """Of the next ``size`` bytes; None where there are fewer. A damaged journal can ask for any number of them."""
    found = 0
    while size:
        part = raw.read(min(size, _PART))
        if not part:
            return None
        found, size = zlib.crc32(part, found), size - len(part)
    return found
