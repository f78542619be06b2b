"""Records of finished work: one JSON value a line, only ever appended; a line without its end does not count."""

from __future__ import annotations

import fcntl
from io import FileIO

import msgspec

from misgnet_runtime.manifest import Struct


def encode_line(value: Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def append_line(handle: FileIO, value: Struct) -> None:
    """Write all of a line; a full disk may leave a part of it. Raises OSError."""
    rest = memoryview(encode_line(value))
    while rest:  # without a buffer, a full disk may take a part
        rest = rest[handle.write(rest) :]


def hold(handle: FileIO) -> bool:
    """Lock a record for as long as this process has it open; False where another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: then it is the user who must not start two
        pass
    return True
