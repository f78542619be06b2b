"""What is finished of a scene, kept beside its target so that a killed run can be gone on with.

``.CHANGE.tif.progress/`` holds ``probability.raw`` (float32, row by row, NaN without data: no image format, so
nothing takes it for a result) and ``journal.jsonl``: what is computed, then a line for each band of rows whose bytes
are on the disk, with their checksum.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.lines import append_line, hold
from misgnet_runtime.manifest import Count, Struct
from misgnet_runtime.outputs import resumable_errors
from misgnet_runtime.tiling import Span

FORMAT = 1
_BYTES = 4
_RAW = "probability.raw"


class Header(Struct, frozen=True, tag="scene"):
    """What is computed: anything else is another scene's run. ``settings``: by the words a user knows them by."""

    format: int
    height: Count
    width: Count
    settings: dict[str, str]


class Band(Struct, frozen=True, tag="band"):
    """Rows from the end of the last band to ``stop`` are on the disk; blocks that were found unreadable since."""

    stop: Count
    crc32: Count
    holes: tuple[tuple[str, Count, Count, Count, Count], ...] = ()


class Publishing(Struct, frozen=True, tag="publishing"):
    """All outputs are complete and are given their names: those that exist are this run's own."""


@dataclass(frozen=True)
class Probabilities:
    """The whole map on disk, float32 (``height``, ``width``), NaN without data."""

    path: Path
    height: int
    width: int

    def read(self, rows: Span, columns: Span | None = None) -> NDArray[np.float32]:
        """float32 (h, w), of all columns without ``columns``; InputError where the file is shorter than it must be."""
        wanted = slice(columns.start, columns.stop) if columns else slice(None)
        try:
            mapped = np.memmap(self.path, np.float32, "r", shape=(self.height, self.width))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} is cut off or cannot be read; start anew with --restart") from error
        return np.array(mapped[rows.start : rows.stop, wanted])


class Journal:
    """An open journal: what is finished, and where more is added. One thread at a time."""

    def __init__(self, handle: FileIO, raw: FileIO, header: Header, bands: list[Band], publishing: bool) -> None:
        self._handle, self._raw, self._header = handle, raw, header
        self.bands = bands
        self.publishing = publishing

    @property
    def probabilities(self) -> Probabilities:
        return Probabilities(Path(str(self._raw.name)), self._header.height, self._header.width)

    @property
    def finished(self) -> int:
        """So many rows of the map are on the disk."""
        return self.bands[-1].stop if self.bands else 0

    @property
    def holes(self) -> frozenset[tuple[str, int, int, int, int]]:
        return frozenset(hole for band in self.bands for hole in band.holes)

    def add(self, rows: NDArray[np.float32], holes: tuple[tuple[str, int, int, int, int], ...]) -> None:
        """Put the next rows, float32 (h, W), on the disk, and note that they are there."""
        data = memoryview(rows.data).cast("B")
        band = Band(self.finished + len(rows), zlib.crc32(data), holes)
        with resumable_errors(self.probabilities.path):
            self._raw.seek(self.finished * self._header.width * _BYTES)
            while data:  # a full disk may take a part
                data = data[self._raw.write(data) :]
            os.fsync(self._raw)
            self._append(band)
        self.bands.append(band)

    def publish(self) -> None:
        """Note that all outputs are complete and about to get their names."""
        with resumable_errors(self.probabilities.path):
            self._append(Publishing())
        self.publishing = True

    def _append(self, value: Struct) -> None:
        append_line(self._handle, value)
        os.fsync(self._handle)


def progress_folder(output: Path) -> Path:
    return output.parent / f".{output.name}.progress"


@contextmanager
def open_journal(output: Path, header: Header, *, restart: bool) -> Iterator[Journal]:
    """The journal of ``output``, begun where there is none or with ``restart``; one run at a time may hold it.

    UsageError where another run is at work, or the journal is of another input, bundle or option; InputError
    where the disk has no room for the map, or refuses.
    """
    folder = progress_folder(output)
    _check_room(folder / _RAW, header)
    with resumable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "journal.jsonl").open("a+b", buffering=0)
    with handle:
        if not hold(handle):
            raise UsageError(f"another run is writing {output}; wait for it, or choose another -o")
        with resumable_errors(folder):
            if restart:
                handle.truncate(0)
            (folder / _RAW).touch()
        with (folder / _RAW).open("r+b", buffering=0) as raw:
            bands, publishing = _go_on(handle, raw, header, output)
            yield Journal(handle, raw, header, bands, publishing)


def discard_progress(output: Path) -> None:
    """Remove what a finished run needs no more, the large file first: a kill in between leaves next to nothing."""
    (progress_folder(output) / _RAW).unlink(missing_ok=True)
    shutil.rmtree(progress_folder(output), ignore_errors=True)


def _check_room(raw: Path, header: Header) -> None:
    folder = next(path for path in raw.parents if path.exists())
    there = raw.stat().st_size if raw.exists() else 0
    needed, free = header.height * header.width * _BYTES - there, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"the scene has {header.width:,} x {header.height:,} px, and its map takes {needed / 2**30:,.1f} GiB "
            f"beside the output, where {free / 2**30:,.1f} GiB are free; is its header damaged? If not, make room, "
            "choose another -o, or cut the scene"
        )


def _go_on(handle: FileIO, raw: FileIO, header: Header, output: Path) -> tuple[list[Band], bool]:
    """The bands that are on the disk, whole; the journal is cut behind them, or begun."""
    handle.seek(0)
    found, entries, length = _parse(handle.read(), output)
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


def _parse(content: bytes, output: Path) -> tuple[Header | None, list[Band | Publishing], int]:
    """The header (None where it was never finished), the entries, and how many bytes count."""
    *lines, torn = content.split(b"\n")
    try:
        if not lines:
            return None, [], 0
        header = msgspec.json.decode(lines[0], type=Header)
        entries = [msgspec.json.decode(line, type=Band | Publishing) for line in lines[1:]]
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise UsageError(f"the journal of {output} is damaged ({error}); start anew with --restart") from error
    return header, entries, len(content) - len(torn)


def _compare(found: Header, asked: Header, output: Path) -> None:
    if found.format != asked.format:
        raise UsageError(f"{output} was begun by another version of this program; start anew with --restart")
    for name in sorted(found.settings.keys() | asked.settings.keys()):
        then, now = (header.settings.get(name, "not set") for header in (found, asked))
        if then != now:
            raise UsageError(
                f"{output} was begun with {name} {then}, and now it is {now}; give the same command again to go on, "
                "or start anew with --restart"
            )
    if found != asked:
        raise UsageError(f"{output} was begun for another size of scene; start anew with --restart")


def _whole_bands(raw: FileIO, header: Header, bands: list[Band]) -> list[Band]:
    """The first bands whose bytes have their checksum."""
    whole: list[Band] = []
    raw.seek(0)
    for band in bands:
        size = (band.stop - (whole[-1].stop if whole else 0)) * header.width * _BYTES
        data = raw.read(max(0, size))
        if not data or len(data) < size or zlib.crc32(data) != band.crc32:
            break
        whole.append(band)
    return whole
