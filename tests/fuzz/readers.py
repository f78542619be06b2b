"""Shared types and helpers of the fuzz targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Reader = Callable[[bytes], object]
Prepared = tuple[Reader, list[bytes]]  # a reader of a file's bytes, and good files


def written(path: Path, read: Callable[[Path], object]) -> Reader:
    """Returns a reader that writes bytes to ``path`` and reads that file."""

    def reader(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return reader
