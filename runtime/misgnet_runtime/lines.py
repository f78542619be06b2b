"""Records of finished work: one JSON value a line, only ever appended; a line without its end does not count."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from io import FileIO
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from misgnet_runtime.errors import UsageError
from misgnet_runtime.manifest import Struct

MOST_LINE = 64 << 20  # bytes of one value; a longer line is read in parts, and none of them is whole
Entry = TypeVar("Entry")
# What a record names is moved or looked for: never what lies outside the record's folder.
FileName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\x00]+$")]


def encode_line(value: Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def append_line(handle: FileIO, value: Struct) -> None:
    """Write all of a line; a full disk may leave a part of it. Raises OSError."""
    rest = memoryview(encode_line(value))
    while rest:  # without a buffer, a full disk may take a part
        rest = rest[handle.write(rest) :]


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


def hold(handle: FileIO) -> bool:
    """Lock a record for as long as this process has it open; False where another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: then it is the user who must not start two
        pass
    return True
