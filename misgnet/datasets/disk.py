"""What the system says when a file cannot be written, as an error that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from misgnet_runtime.errors import InputError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Around writing only: InputError where the system refuses."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}; make room or choose another -o, and run the "
            "same command again"
        ) from error
