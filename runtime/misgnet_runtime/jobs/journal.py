"""What is finished of a scene, kept beside its target so that a killed run can be gone on with.

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

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from misgnet_runtime.errors import InputError, StorageError, UsageError
from misgnet_runtime.jobs.tuned_since import tuned_since
from misgnet_runtime.storage.atomic import resumable_errors
from misgnet_runtime.storage.jsonl import append_line, decode_lines, open_held, write_all
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Struct

FORMAT = 2
_JOURNAL = "journal.jsonl"
_PART = 1 << 20


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
        return Header(FORMAT, self.count, self.size, settings)


class Band(Struct, frozen=True, tag="band"):
    """Units from the end of the last band to ``stop`` are on the disk; blocks that were found unreadable since."""

    stop: Count
    crc32: Count
    holes: tuple[tuple[str, Count, Count, Count, Count], ...] = ()


class Publishing(Struct, frozen=True, tag="publishing"):
    """All outputs are complete and are given their names: those that exist are this run's own."""


class Journal:
    """An open journal: what is finished, and where more is added. One thread at a time."""

    def __init__(self, handle: FileIO, raw: FileIO, header: Header, bands: list[Band], publishing: bool) -> None:
        self._handle, self._raw, self._header = handle, raw, header
        self.bands = bands
        self.publishing = publishing

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
            self._append(*bands)
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
        with resumable_errors(self.path):
            self._append(Publishing())
        self.publishing = True

    def _append(self, *values: Struct) -> None:
        for value in values:
            append_line(self._handle, value)
        os.fsync(self._handle)


def progress_folder(output: Path) -> Path:
    return output.parent / f".{output.name}.progress"


def raw_map(height: int, width: int) -> Raw:
    """The raw file of a map of so many pixels."""
    return Raw("probability.raw", height, width * 4, f"the scene has {width:,} x {height:,} px, and its map")


@contextmanager
def open_journal(output: Path, raw: Raw, settings: dict[str, str], *, restart: bool) -> Iterator[Journal]:
    """The journal of ``output``, begun where there is none or with ``restart``; one run at a time may hold it.

    UsageError where another run is at work, or the journal is of another input, bundle or option; InputError
    where the disk has no room for the raw file, or refuses.
    """
    folder, header = progress_folder(output), raw.header(settings)
    check_room(output, raw)
    busy = f"another run is writing {output}; wait for it, or choose another -o"
    with open_held(folder / _JOURNAL, busy) as handle:
        with resumable_errors(folder):
            if restart:
                handle.truncate(0)
            (folder / raw.name).touch()
        with (folder / raw.name).open("r+b", buffering=0) as file:
            bands, publishing = _go_on(handle, file, header, output)
            yield Journal(handle, file, header, bands, publishing)


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
    except UsageError:  # it is damaged, which whoever opens it is told, but where all begins anew
        return False


def was_published(output: Path) -> bool:
    """Whether a run of ``output`` ended when its outputs were complete, and its progress is still there."""
    journal = progress_folder(output) / _JOURNAL
    if not journal.is_file():
        return False
    with journal.open("rb", buffering=0) as handle:
        return any(isinstance(entry, Publishing) for entry in _parse(handle, output)[1])


def finished_units(output: Path) -> int:
    """How many rows of a map, or tiles' features, an interrupted run of ``output`` left on the disk."""
    journal = progress_folder(output) / _JOURNAL
    try:
        with journal.open("rb", buffering=0) as handle:
            bands = [entry for entry in _parse(handle, output)[1] if isinstance(entry, Band)]
    except (OSError, UsageError):  # none, or a damaged one, which counts for nothing
        return 0
    return bands[-1].stop if bands else 0


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


def _go_on(handle: FileIO, raw: FileIO, header: Header, output: Path) -> tuple[list[Band], bool]:
    """The bands that are on the disk, whole; the journal is cut behind them, or begun."""
    found, entries, length = _parse(handle, output)
    bands = [entry for entry in entries if isinstance(entry, Band)]
    if found is not None and bands:  # what holds no work may be of any scene
        _compare(found, header, output)
    whole = _whole_bands(raw, header, bands)
    with resumable_errors(output):
        if not bands or len(whole) < len(bands):
            handle.truncate(0)
            for value in (header, *whole):
                append_line(handle, value)
        else:
            handle.truncate(length)
        os.fsync(handle)
    return whole, len(whole) == len(bands) and any(isinstance(entry, Publishing) for entry in entries)


def _parse(handle: FileIO, output: Path) -> tuple[Header | None, list[Band | Publishing], int]:
    """The header (None where it was never finished), the entries, and how many bytes count."""
    try:
        found, length = decode_lines(handle, _decode)
    except JSON_ERRORS as error:
        raise UsageError(f"the journal of {output} is damaged ({error}); start anew with --restart") from error
    header = found[0] if found else None
    assert header is None or isinstance(header, Header)
    return header, [entry for entry in found if not isinstance(entry, Header)], length


def _decode(line: bytes, number: int) -> Header | Band | Publishing:
    if number == 1:
        return msgspec.json.decode(line, type=Header)
    return msgspec.json.decode(line, type=Band | Publishing)


def _compare(found: Header, asked: Header, output: Path) -> None:
    if found.format != asked.format:
        raise UsageError(f"{output} was begun by another version of this program; start anew with --restart")
    if words := difference(found.settings, asked.settings):
        advice = tuned_since(found.settings, asked.settings) or "give the same command again to go on"
        raise UsageError(f"{output} was begun with {words}; {advice}, or start anew with --restart")
    if found != asked:
        raise UsageError(f"{output} was begun for another size of scene; start anew with --restart")


def difference(then: dict[str, str], now: dict[str, str]) -> str | None:
    """The first setting that is not what it was, with both values: "--overlap 16, and now it is 8"."""
    for name in sorted(then.keys() | now.keys()):
        old, new = (settings.get(name, "not set") for settings in (then, now))
        if old != new:
            return f"{name} {old}, and now it is {new}"
    return None


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
