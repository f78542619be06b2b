"""Defines types and a helper that all targets of the fuzzer share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Reader = Callable[[bytes], object]
Prepared = tuple[Reader, list[bytes]]  # a function that reads the bytes of a file, and the bytes of good files


def written(path: Path, read: Callable[[Path], object]) -> Reader:
    """Returns a reader that writes bytes to the file ``path`` and calls ``read`` with it."""

    def reader(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return reader
