"""What is at a path, and opening it. Path's own questions raise errors for names that the system cannot have."""

from __future__ import annotations

import errno
import hashlib
import os
import weakref
from contextlib import ExitStack
from pathlib import Path, PurePosixPath


def _flags(*names: str) -> int:
    """Of :func:`os.open`; Windows lacks most of them."""
    return sum(getattr(os, name, 0) for name in names)


# Not blocking: a named pipe would be waited for without end. Binary: Windows would translate line ends.
READ = os.O_RDONLY | _flags("O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
NO_LINK = _flags("O_NOFOLLOW")
_FOLDER = _flags("O_DIRECTORY")
FOLDERS_OPEN = bool(_FOLDER)  # whether folders can be opened: to be locked, synced, and held whatever takes their name


def is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113


def is_not_regular_file(path: Path) -> bool:
    """Whether something else is there. A named pipe would be waited for without end."""
    return os.path.exists(path) and not is_file(path)  # noqa: PTH110


def file_sha256(*paths: Path) -> str:
    """SHA-256 of the bytes of ``paths``, one after the other. Raises OSError."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                total.update(part)
    return total.hexdigest()


def open_unlinked(path: Path, flags: int = READ) -> int:
    """Return a descriptor of what is at ``path``. Raises OSError, for a link with ELOOP."""
    if not NO_LINK:
        _refuse_link(path)
    return os.open(path, flags | NO_LINK, 0o666)


def _refuse_link(path: Path) -> None:
    """Raise OSError for a link. Windows has no flag for it, so that one may be put there right after this."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


class OpenFolder:
    """A folder that is held open: what is opened in it is in this folder, whatever takes its name meanwhile.

    Windows opens no folders: there ``handle`` is None, and what has the folder's path is used. Raises OSError where
    it is no folder, or a link, unless ``links`` are followed.
    """

    def __init__(self, path: Path, *, links: bool = True) -> None:
        self.path = path
        self.handle: int | None = None
        if FOLDERS_OPEN:
            self.handle = os.open(path, READ | _FOLDER | (0 if links else NO_LINK))
            self._close = weakref.finalize(self, os.close, self.handle)
        elif not path.is_dir() or (path.is_symlink() and not links):
            path.stat()  # FileNotFoundError where there is nothing
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.handle is not None:
            self._close()

    def open_file(self, relative: str) -> int:
        """Return a descriptor of a file below the folder.

        Raises OSError, where one of its parts is a link with ELOOP or ENOTDIR, and ValueError for a name that no
        file can have.
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
        """Of all that is in it, sorted."""
        return sorted(os.listdir(self.path if self.handle is None else self.handle))  # noqa: PTH208

    def remove(self, name: str) -> None:
        """Remove a file. Raises FileNotFoundError where there is none."""
        if self.handle is None:
            (self.path / name).unlink()
        else:
            os.unlink(name, dir_fd=self.handle)
