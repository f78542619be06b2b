"""``prepare.jsonl``: what was made from what. A header line, then a line for each unit that is finished.

Lines are only ever appended. A line without its end was being written when a run was killed: it does not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import field

from misgnet.datasets.split import Edges
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.storage.atomic import resumable_errors
from misgnet_runtime.storage.jsonl import append_line, encode_line, open_held
from misgnet_runtime.storage.schema import JSON_ERRORS, Count, Sha256, Struct

RECORD = "prepare.jsonl"
FORMAT = 1
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


@dataclass(frozen=True)
class Record:
    """The open record: what is finished, and where more is added."""

    done: dict[str, Done]
    handle: FileIO

    def add(self, done: Done) -> None:
        """Note that a unit is finished. Its tiles must be in place."""
        with resumable_errors(Path(str(self.handle.name))):
            append_line(self.handle, done)
        self.done[done.unit] = done


@contextmanager
def open_record(folder: Path, header: Header, rasters: Mapping[str, Path]) -> Iterator[Record]:
    """The record of ``folder``, begun with ``header`` where there is none; only one run may hold it.

    UsageError where the folder was prepared with other settings or another run is at work, InputError where
    the sources are others or a line is damaged; then nothing is changed. ``rasters``: paths for the messages.
    """
    path = folder / RECORD
    with open_held(path, f"another run is preparing {folder}; wait for it, or choose another -o") as handle:
        handle.seek(0)
        content = handle.read()
        found, done, length = parse(content, path, header)
        if found is not None:
            _compare(found, header, folder, rasters)
        with resumable_errors(path):
            if length < len(content):
                handle.truncate(length)
            if found is None:
                append_line(handle, header)
        yield Record(done, handle)
        with resumable_errors(path):
            os.fsync(handle)


def parse(content: bytes, path: Path, expected: Header) -> tuple[Header | None, dict[str, Done], int]:
    """The header (None where it was never finished), the units that are done, and how many bytes count."""
    *lines, torn = content.split(b"\n")
    if not lines:
        if not encode_line(expected).startswith(torn):
            raise UsageError(f"{path} is no record of `misgnet prepare`; choose another -o, or replace it with --force")
        return None, {}, 0
    header = _decode_header(lines[0], path)
    done = (_decode_done(line, number, path) for number, line in enumerate(lines[1:], 2))
    return header, {unit.unit: unit for unit in done}, len(content) - len(torn)


def _decode_header(line: bytes, path: Path) -> Header:
    try:
        found = msgspec.json.decode(line, type=_Version).format
        if found != FORMAT:
            raise UsageError(
                f"{path} has format {found}, and this version writes {FORMAT}; choose another -o, or "
                "prepare it anew with --force"
            )
        return msgspec.json.decode(line, type=Header)
    except JSON_ERRORS as error:
        raise UsageError(
            f"{path} is no record of `misgnet prepare` ({error}); choose another -o, or replace it with --force"
        ) from error


def _decode_done(line: bytes, number: int, path: Path) -> Done:
    try:
        return msgspec.json.decode(line, type=Done)
    except JSON_ERRORS as error:
        raise InputError(f"{path}, line {number} is damaged ({error}); {ANEW}") from error


class _Version(msgspec.Struct):
    format: int


def _compare(found: Header, asked: Header, folder: Path, rasters: Mapping[str, Path]) -> None:
    for name in ("dataset", "tile", "seed", "edges"):
        then, now = getattr(found, name), getattr(asked, name)
        if then != now:
            raise UsageError(
                f"{folder} was prepared with {name} {then}, and {now} is asked; choose another -o, or "
                "prepare it anew with --force"
            )
    for role, path in rasters.items():
        if found.rasters.get(role) != asked.rasters[role]:
            raise InputError(f"the {role} raster {path} is another than when {folder} was begun; {ANEW}")
    if found != asked:
        raise InputError(
            f"the source had {_shown(found.splits)} when {folder} was begun, and has {_shown(asked.splits)}; {ANEW}"
        )


def _shown(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in splits.items())
