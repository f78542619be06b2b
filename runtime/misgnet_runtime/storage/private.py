"""Stores files in folders that only this user can write: compiled plans, tunings and accepted versions.

A plan is native code, and accepted versions keep old bundles from running, so anyone who could change such a folder
could run code as the user. A folder is used only if no other user can have changed it: it belongs to this user, has
mode 0700, and no other user can replace any part of its path; see :mod:`misgnet_runtime.storage.permissions`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.files import OpenFolder
from misgnet_runtime.storage.lock import lock_folder
from misgnet_runtime.storage.permissions import OWNERS, exchangeable, is_mine

_SEAL = 65  # bytes: 64 digits and a newline


class NoFolderError(InputError):
    """Reports that no cache folder is configured. Readers treat it as an empty cache; writers fail."""


def cache_folder() -> Path:
    """Returns $MISGNET_CACHE, else the system's cache folder: on Linux $XDG_CACHE_HOME/misgnet or ~/.cache/misgnet.

    Raises:
        NoFolderError: None of them is an absolute path.
        InputError: $MISGNET_CACHE is relative.
    """
    found = user_folder("MISGNET_CACHE", "cache")
    if found is None:
        raise NoFolderError("there is no cache folder: set MISGNET_CACHE, XDG_CACHE_HOME or HOME")
    return found


def user_folder(variable: str, kind: Literal["cache", "state"]) -> Path | None:
    """Returns the folder named by ``variable``, else the system's folder for a program's cache or state.

    The folder never depends on the working directory: a relative $XDG_CACHE_HOME or $XDG_STATE_HOME is ignored, as its
    specification requires, and a relative $HOME gives no folder. A state folder needs $HOME; without it, a
    cache folder is placed in the home directory that the user database states. Returns None if no folder is available.

    Raises:
        InputError: ``variable`` is a relative path.
    """
    if found := os.environ.get(variable):
        if not Path(found).is_absolute():
            raise InputError(
                f"{variable} is '{found}', which depends on the working directory; set it to an absolute path"
            )
        return Path(found)
    home, common = (os.environ.get(name, "") for name in ("HOME", f"XDG_{kind.upper()}_HOME"))
    if OWNERS and not any(Path(path).is_absolute() for path in (home, common)) and (home or kind == "state"):
        return None
    from platformdirs import PlatformDirs  # a slow import

    folders = PlatformDirs("misgnet", appauthor=False)
    try:
        path = folders.user_cache_path if kind == "cache" else folders.user_state_path
    except RuntimeError:  # the user has no home
        return None
    return path if path.is_absolute() else None


@dataclass(frozen=True)
class PrivateFolder:
    """A folder that only this user can read and write.

    All methods raise InputError if it belongs to another user, is open to others, or could be replaced by others.
    """

    path: Path
    variable: str = "MISGNET_CACHE"  # the environment variable that sets another folder
    may_be_link: bool = False

    @classmethod
    def of(cls, name: str) -> PrivateFolder:
        """Returns the folder ``name`` in this user's cache; it need not exist yet."""
        return cls(cache_folder() / name)

    def make(self) -> None:
        """Creates the folder if it does not exist. Raises StorageError if that fails."""
        try:
            _make(self.path)
            with self._opened():
                pass
        except OSError as error:
            raise self._unusable(error.strerror) from error

    def prepare(self) -> None:
        """Creates the folder if it does not exist. Raises StorageError if that fails or it is not writable."""
        self.make()
        if not os.access(self.path, os.W_OK):
            raise self._unusable("it is not writable")

    def read(self, name: str, limit: int) -> bytes | None:
        """Returns the bytes of a file, or None if it does not exist.

        Args:
            name: Its name, or a relative path with forward slashes.
            limit: The largest accepted size in bytes.

        Raises:
            InputError: It is a link, not a regular file, another user's, or too large.
            OSError: It cannot be read.
        """
        try:
            with self._opened() as folder:
                handle = folder.open_file(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputError(f"{self.path / name} cannot be used: it is a link") from None
            raise
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{self.path / name} cannot be used: it is not a regular file")
            if not is_mine(status):
                raise InputError(f"{self.path / name} cannot be used: it belongs to user {status.st_uid}")
            data = file.read(min(status.st_size, limit) + 1)  # Python allocates the requested size
        if len(data) > limit:
            raise InputError(f"{self.path / name} cannot be used: it is larger than {limit} bytes")
        return data

    def read_sealed(self, name: str, limit: int) -> bytes | None:
        """Returns the contents that :meth:`write_sealed` wrote. Raises InputError also for a wrong digest."""
        data = self.read(name, limit + _SEAL)
        if data is None:
            return None
        contents = data[_SEAL:]
        if data[:_SEAL] != _seal(contents):
            raise InputError(f"{self.path / name} cannot be used: its contents do not match its digest")
        return contents

    def write(self, name: str, data: bytes) -> Path:
        """Writes a file atomically. Raises StorageError if it cannot be written."""
        with self._opened():
            path = self.path / name
            if path.is_symlink():
                raise InputError(f"{path} is a link, which this program did not create; remove it")
            write_file(path, data)
        return path

    def write_sealed(self, name: str, contents: bytes) -> Path:
        """Writes a file atomically, with its digest before the contents."""
        return self.write(name, _seal(contents) + contents)

    def names(self) -> list[str]:
        """Returns the names of everything in the folder."""
        with self._opened() as folder:
            return folder.names()

    def remove(self, name: str) -> None:
        """Removes a file if it exists."""
        with self._opened() as folder, suppress(FileNotFoundError):
            folder.remove(name)

    def write_within(self, limit: int, name: str, data: bytes, what: str) -> None:
        """Writes a sealed file; first removes the oldest ones with its suffix, until all take at most ``limit`` bytes.

        Also removes what killed processes left. ``what``: as of :meth:`locked`. Creates the folder if it is missing.
        """
        self.prepare()
        with self.locked(what):
            self._make_room(Path(name).suffix, len(data), limit)
            self.write_sealed(name, data)

    def _make_room(self, suffix: str, size: int, limit: int) -> None:
        found = []
        for name in self.names():
            if name.startswith("."):
                self.remove(name)
            elif name.endswith(suffix):
                status = (self.path / name).stat()
                found.append((status.st_mtime_ns, name, status.st_size))
        total = size + sum(length for _, _, length in found)
        for _, name, length in sorted(found):
            if total > limit:
                self.remove(name)
                total -= length

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """Locks the folder within the block; waits if another process holds the lock, and logs that.

        Raises:
            LockTimeoutError: The lock was not released in time; the message says ``what`` the other process does.
        """
        with self._opened() as folder, lock_folder(folder, f"another process of this user {what}"):
            yield

    @contextmanager
    def _opened(self) -> Iterator[OpenFolder]:
        """Yields the open folder after checking that it is private. Raises FileNotFoundError if it does not exist."""
        try:
            folder = OpenFolder(self.path, links=self.may_be_link)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            link = "" if self.may_be_link else ", not a link"
            raise InputError(f"{self.path} must be a folder{link}; remove it, or {self._advice}") from None
        with folder:
            self._check(folder.stat())
            yield folder

    def _check(self, status: os.stat_result) -> None:
        if not is_mine(status):
            raise InputError(f"folder {self.path} belongs to user {status.st_uid}, not to this user; {self._advice}")
        if OWNERS and (mode := stat.S_IMODE(status.st_mode)) & 0o077:
            raise InputError(
                f"folder {self.path} is open to other users (mode {mode:04o}); if its contents are unchanged, run: "
                f"chmod 700 {self.path}; otherwise remove it, or {self._advice}"
            )
        if entry := exchangeable(self.path):
            raise InputError(
                f"folder {self.path} can be replaced by other users: {entry} belongs to them or is writable by them; "
                f"run: chmod go-w {entry}, or {self._advice}"
            )

    def _unusable(self, problem: str | None) -> StorageError:
        return StorageError(f"folder {self.path} cannot be used: {problem}; {self._advice}")

    @property
    def _advice(self) -> str:
        return f"set {self.variable} to another folder"


def _make(path: Path) -> None:
    """Creates the folder and its missing parents with mode 0700, regardless of the umask."""
    missing = takewhile(lambda folder: not folder.exists(), [path, *path.parents])
    for folder in reversed([*missing]):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)


def _seal(contents: bytes) -> bytes:
    return hashlib.sha256(contents).hexdigest().encode() + b"\n"
