"""What the readers of files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Reader = Callable[[bytes], object]
Prepared = tuple[Reader, list[bytes]]  # how a file's bytes are read, and good files


def written(path: Path, read: Callable[[Path], object]) -> Reader:
    """Reads bytes as the file ``path``."""

    def reader(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return reader
