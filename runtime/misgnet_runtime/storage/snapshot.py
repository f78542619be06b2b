"""Detects changes of files while they are used, so that a recorded digest is that of the bytes used."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.files import file_sha256

_RECENT = 2 * 10**9  # ns: two changes within one tick of the file system's clock leave the same times


class FileStamp(NamedTuple):
    """The identity and state of a file: replacing the file or writing to it changes this value."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Returns the stamp of the file at ``path``. Raises OSError if it does not exist."""
        found = path.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Snapshot:
    """The state of files at one moment; :meth:`check` raises an error if they have changed since.

    A file that was changed shortly before is also compared by its digest, because its times may not have changed.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._states = {path: _state(path) for path in paths}
        self._digests: dict[tuple[Path, ...], str] = {}
        self._recent = self._is_recent()

    def sha256(self, *paths: Path) -> str:
        """Returns the SHA-256 of the concatenated bytes of ``paths``. Raises InputError if one cannot be read."""
        self._digests[paths] = digest = _sha256(paths)
        return digest

    def check(self) -> None:
        """Raises InputError if a file was replaced or changed."""
        for path, state in self._states.items():
            if _state(path) != state:
                raise _changed(path)
        if self._recent:
            for paths, digest in self._digests.items():
                if _sha256(paths) != digest:
                    raise _changed(paths[0])
            self._recent = self._is_recent()

    def _is_recent(self) -> bool:
        now = time.time_ns()
        return any(now - max(state.mtime_ns, state.ctime_ns) < _RECENT for state in self._states.values() if state)


def _state(path: Path) -> FileStamp | None:
    try:
        return FileStamp.of(path)
    except OSError:
        return None


def _sha256(paths: tuple[Path, ...]) -> str:
    try:
        return file_sha256(*paths)
    except OSError as error:
        raise InputError(f"{error.filename or paths[0]} cannot be read: {error.strerror or error}") from error


def _changed(path: Path) -> InputError:
    return InputError(f"{path} changed while it was read; leave it unchanged and rerun the command")
