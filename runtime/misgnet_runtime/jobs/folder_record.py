"""Which outputs of a folder are written, kept in the folder until all are, so that a killed run can be resumed.

``OUT/.progress/`` holds ``journal.jsonl``: by what the masks are made, then a line for each few masks, written when
they are whole on the disk. Then they get their names; those that a killed run left without get theirs later.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

import msgspec

from misgnet_runtime.callables import Mask
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.raster.dataset import Source
from misgnet_runtime.raster.images import write_mask
from misgnet_runtime.storage.atomic import publish, refuse_existing, resumable_errors, sync
from misgnet_runtime.storage.jsonl import FileName, append_line, decode_lines, open_held
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Struct

FORMAT = 2
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


@dataclass(frozen=True)
class Record:
    """The open record of ``output``: what is written, by name, and where more is added."""

    output: Path
    handle: FileIO
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
        with resumable_errors(self.output):
            append_line(self.handle, _Line(tuple(masks)))
            os.fsync(self.handle)
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
    """The record of ``output``, begun where there is none, or anew with ``force`` where it is of other settings.

    ``outputs``: the name of each pair's output, by the pair's name. UsageError where another run is at work, the masks
    were begun otherwise, or one exists that no run of these wrote; StorageError where the disk refuses. The record is
    removed when the block succeeds.
    """
    folder = progress_folder(output)
    if not folder.exists():
        _refuse(output, outputs, {}, force)
    busy = f"another run is writing {output}; wait for it, or choose another -o"
    with open_held(folder / "journal.jsonl", busy) as handle:
        lines, length = _read(handle, Header(FORMAT, settings), output, force)
        named = {mask.name: mask for line in lines for mask in line.masks}
        _refuse(output, outputs, named, force)
        with resumable_errors(folder):
            handle.truncate(length)
            if not length:
                _clear(folder)
                append_line(handle, Header(FORMAT, settings))
        record = Record(output, handle, named)
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


def _read(handle: FileIO, asked: Header, output: Path, force: bool) -> tuple[list[_Line], int]:
    """The lines of a run like this one, and how many bytes count; none of another run's where it may be replaced."""
    try:
        lines, length = decode_lines(handle, _decode)
    except JSON_ERRORS as error:
        if force:
            return [], 0
        raise UsageError(f"the journal of {output} is damaged ({error}); begin anew with --force") from error
    header, found = _parts(lines, asked)
    if header == asked:
        return found, length
    if found and not force:
        raise UsageError(
            f"{output} was begun with {_shown(header)}, and now it is {_shown(asked)}; give the same command again to "
            "go on, or begin anew with --force"
        )
    return [], 0


def _decode(line: bytes, number: int) -> Header | _Line:
    if number == 1:
        return msgspec.json.decode(line, type=Header)
    return msgspec.json.decode(line, type=_Line)


def _parts(lines: list[Header | _Line], asked: Header) -> tuple[Header, list[_Line]]:
    """The header, ``asked`` where there is none yet, and what follows it."""
    first = lines[0] if lines else asked
    assert isinstance(first, Header)
    return first, [line for line in lines if isinstance(line, _Line)]


def _shown(header: Header) -> str:
    return ", ".join(f"{name} {value}" for name, value in header.settings.items())
