"""Records of finished work: one JSON value a line, only ever appended; a line without its end does not count."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from misgnet_runtime.errors import UsageError
from misgnet_runtime.lock import try_acquire
from misgnet_runtime.manifest import Struct
from misgnet_runtime.outputs import resumable_errors

MOST_LINE = 64 << 20  # bytes of one value; a longer line is read in parts, and none of them is whole
Entry = TypeVar("Entry")
# What a record names is moved or looked for: never what lies outside the record's folder.
FileName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\x00]+$")]


def encode_line(value: Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"


@contextmanager
def open_held(path: Path, busy: str) -> Iterator[FileIO]:
    """A record to read and to append to, made with its folder where there is none; nobody else holds it meanwhile.

    UsageError with the words ``busy`` where another process holds it, StorageError where the disk refuses.
    """
    with resumable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+b", buffering=0)
    with handle:
        if not try_acquire(handle.fileno()):
            raise UsageError(busy)
        yield handle


def add_line(handle: FileIO, length: int, value: Struct, *, sync: bool = True) -> int:
    """Append a line to the ``length`` bytes that count, with ``sync`` on the disk; how many bytes count then.

    StorageError where the disk refuses: a part of a line that it left does not count, and goes with the next call.
    """
    with resumable_errors(Path(str(handle.name))):
        handle.truncate(length)
        append_line(handle, value)
        if sync:
            os.fsync(handle)
        return os.fstat(handle.fileno()).st_size


def append_line(handle: FileIO, value: Struct) -> None:
    """Write all of a line; a full disk may leave a part of it. Raises OSError."""
    write_all(handle, memoryview(encode_line(value)))


def write_all(handle: FileIO, data: memoryview) -> None:
    """Write all of ``data``; a full disk may leave a part of it. Raises OSError."""
    while data:  # without a buffer, a full disk may take a part
        data = data[handle.write(data) :]


def decode_lines(handle: FileIO, decode: Callable[[bytes, int], Entry]) -> tuple[list[Entry], int]:
    """What ``decode`` makes of each line and its number, from 1, and how many bytes these lines take.

    Line by line, so that a file of any size takes no more memory than what is made of it. UsageError for no file.
    """
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):  # a named pipe would wait for ever
        raise UsageError(f"{handle.name!r} is no file; move it away, or choose another -o")
    entries: list[Entry] = []
    length = 0
    handle.seek(0)
    with open(handle.fileno(), "rb", closefd=False) as file:
        while line := file.readline(MOST_LINE):
            if not line.endswith(b"\n") and len(line) < MOST_LINE:
                break
            entries.append(decode(line.removesuffix(b"\n"), len(entries) + 1))
            length += len(line)
    return entries, length


@contextmanager
def line_errors(path: Path, number: int, without: str) -> Iterator[None]:
    """Around decoding a line: UsageError where it is damaged; ``without``: what follows where the record is gone."""
    try:
        yield
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise UsageError(
            f"{path}, line {number} is damaged, or another version's ({error}); choose another -o, or move it away: "
            f"then {without}"
        ) from error
