"""Inspects and opens paths. Uses ``os.path``, because methods of ``Path`` raise errors for invalid names."""

from __future__ import annotations

import errno
import hashlib
import os
import weakref
from contextlib import ExitStack
from pathlib import Path, PurePosixPath


def _flags(*names: str) -> int:
    """Returns the sum of flags of :func:`os.open`; Windows lacks most of them."""
    return sum(getattr(os, name, 0) for name in names)


# Nonblocking: opening a named pipe would wait forever. Binary: Windows would translate line ends.
READ = os.O_RDONLY | _flags("O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
NO_LINK = _flags("O_NOFOLLOW")
_FOLDER = _flags("O_DIRECTORY")
FOLDERS_OPEN = bool(_FOLDER)  # whether folders can be opened, to lock and sync them, and to use them after a rename


def is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112


def is_not_regular_file(path: Path) -> bool:
    """Returns whether something exists that is not a regular file. Opening a named pipe would wait forever."""
    return os.path.exists(path) and not is_file(path)  # noqa: PTH110


def file_sha256(*paths: Path) -> str:
    """Returns the SHA-256 of the concatenated bytes of ``paths``. Raises OSError."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                total.update(part)
    return total.hexdigest()


def read_at_most(path: Path, most: int) -> bytes | None:
    """Returns the bytes of a file, which must be a regular one; None if it has more than ``most``. Raises OSError."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    return data if len(data) <= most else None


def open_unlinked(path: Path, flags: int = READ) -> int:
    """Opens ``path`` and returns its descriptor. Raises OSError; its errno is ELOOP for a link."""
    if not NO_LINK:
        _refuse_link(path)
    return os.open(path, flags | NO_LINK, 0o666)


def _refuse_link(path: Path) -> None:
    """Raises OSError for a link. On Windows, which has no such flag, a link could still appear after this check."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


class OpenFolder:
    """An open folder. Files are opened in this folder even if it was renamed or replaced meanwhile.

    Windows cannot open folders: there ``handle`` is None, and the folder's path is used.
    """

    def __init__(self, path: Path, *, links: bool = True) -> None:
        """Opens the folder. Raises OSError if ``path`` is not a folder, or is a link and ``links`` is off."""
        self.path = path
        self.handle: int | None = None
        if FOLDERS_OPEN:
            self.handle = os.open(path, READ | _FOLDER | (0 if links else NO_LINK))
            self._close = weakref.finalize(self, os.close, self.handle)
        elif not path.is_dir() or (path.is_symlink() and not links):
            path.stat()  # raises FileNotFoundError if it does not exist
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.handle is not None:
            self._close()

    def open_file(self, relative: str) -> int:
        """Opens a file below the folder and returns its descriptor.

        Raises:
            OSError: The file cannot be opened; errno is ELOOP or ENOTDIR if a part of the path is a link.
            ValueError: The name is invalid.
        """
        *folders, name = PurePosixPath(relative).parts
        if self.handle is None:
            return self._open_by_path([*folders, name])
        handle = self.handle
        with ExitStack() as opened:
            for folder in folders:
                handle = os.open(folder, READ | NO_LINK | _FOLDER, dir_fd=handle)
                opened.callback(os.close, handle)
            return os.open(name, READ | NO_LINK, dir_fd=handle)

    def _open_by_path(self, parts: list[str]) -> int:
        path = self.path
        for part in parts:
            path /= part
            _refuse_link(path)
        return os.open(path, READ)

    def stat(self) -> os.stat_result:
        return self.path.stat() if self.handle is None else os.fstat(self.handle)

    def names(self) -> list[str]:
        """Returns the sorted names of everything in the folder."""
        return sorted(os.listdir(self.path if self.handle is None else self.handle))  # noqa: PTH208

    def remove(self, name: str) -> None:
        """Removes a file. Raises FileNotFoundError if it does not exist."""
        if self.handle is None:
            (self.path / name).unlink()
        else:
            os.unlink(name, dir_fd=self.handle)
