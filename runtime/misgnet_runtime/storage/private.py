"""Folders of one user: what this machine made for itself (plans, tunings), and the versions that it accepted.

A plan is native code, and accepted versions keep old bundles out, so whoever could change such a folder could run code
as the user. One is used only where nobody else can have changed it: it belongs to the user, has mode 0700, and nobody
else may exchange it, or a folder or link on the way to it; see :mod:`misgnet_runtime.storage.permissions`.
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
    """No folder is named in which anything could be kept: whoever reads finds nothing, whoever writes fails."""


def cache_folder() -> Path:
    """Return $MISGNET_CACHE, else the system's folder for caches, on Linux $XDG_CACHE_HOME/misgnet or ~/.cache/misgnet.

    Raises NoFolderError where none of them is an absolute path, InputError where $MISGNET_CACHE is relative.
    """
    found = user_folder("MISGNET_CACHE", "cache")
    if found is None:
        raise NoFolderError("there is no folder to keep results in: set MISGNET_CACHE, XDG_CACHE_HOME or HOME")
    return found


def user_folder(variable: str, kind: Literal["cache", "state"]) -> Path | None:
    """Return the folder that ``variable`` names, else where the system keeps a program's cache or state.

    What depends on the working directory is never returned: a relative $XDG_CACHE_HOME or $XDG_STATE_HOME counts as not
    set, as its specification asks, and with a relative $HOME there is no folder. A state needs $HOME, a cache is also
    kept in the home that the user database states. None where there is no folder.
    Raises InputError where ``variable`` is relative.
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
    from platformdirs import PlatformDirs  # not cheap

    folders = PlatformDirs("misgnet", appauthor=False)
    try:
        path = folders.user_cache_path if kind == "cache" else folders.user_state_path
    except RuntimeError:  # the user has no home
        return None
    return path if path.is_absolute() else None


@dataclass(frozen=True)
class PrivateFolder:
    """A folder that only this user can read and write.

    All methods raise InputError where it is not: another's, open to others, or where others could exchange it.
    """

    path: Path
    variable: str = "MISGNET_CACHE"  # which names another one
    may_be_link: bool = False

    @classmethod
    def of(cls, name: str) -> PrivateFolder:
        """The folder ``name`` of this user's cache, which need not be there yet."""
        return cls(cache_folder() / name)

    def make(self) -> None:
        """Make it where it is not there; StorageError where that fails."""
        try:
            _make(self.path)
            with self._opened():
                pass
        except OSError as error:
            raise self._unusable(error.strerror) from error

    def prepare(self) -> None:
        """As :meth:`make`, also StorageError where nothing could be written in it."""
        self.make()
        if not os.access(self.path, os.W_OK):
            raise self._unusable("no right to write there")

    def read(self, name: str, limit: int) -> bytes | None:
        """The file's bytes, None where there is none; InputError where it is no file, a link or over ``limit`` bytes.

        ``name`` may be a relative path with slashes. Raises OSError where the system refuses.
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
                raise InputError(f"{self.path / name} cannot be used: it is no file")
            if not is_mine(status):
                raise InputError(f"{self.path / name} cannot be used: it belongs to user {status.st_uid}")
            data = file.read(min(status.st_size, limit) + 1)  # Python takes as much memory as it is asked for
        if len(data) > limit:
            raise InputError(f"{self.path / name} cannot be used: it is larger than {limit} bytes")
        return data

    def read_sealed(self, name: str, limit: int) -> bytes | None:
        """What :meth:`write_sealed` wrote; InputError too where the digest is not that of the contents."""
        data = self.read(name, limit + _SEAL)
        if data is None:
            return None
        contents = data[_SEAL:]
        if data[:_SEAL] != _seal(contents):
            raise InputError(f"{self.path / name} cannot be used: its digest is not that of what it holds")
        return contents

    def write(self, name: str, data: bytes) -> Path:
        """Write the file whole or not at all; StorageError where the disk refuses."""
        with self._opened():
            path = self.path / name
            if path.is_symlink():
                raise InputError(f"{path} is a link, which was not put there by this program; remove it")
            write_file(path, data)
        return path

    def write_sealed(self, name: str, contents: bytes) -> Path:
        """As :meth:`write`, behind its digest."""
        return self.write(name, _seal(contents) + contents)

    def names(self) -> list[str]:
        """Of all that is there."""
        with self._opened() as folder:
            return folder.names()

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with self._opened() as folder, suppress(FileNotFoundError):
            folder.remove(name)

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """For one process at a time: waits for another one, which is logged.

        Raises LockTimeoutError, which names ``what`` the other one does, where that does not end in time.
        """
        with self._opened() as folder, lock_folder(folder, f"another process of this user {what}"):
            yield

    @contextmanager
    def _opened(self) -> Iterator[OpenFolder]:
        """The folder, once it is known to be its user's alone. FileNotFoundError where there is none."""
        try:
            folder = OpenFolder(self.path, links=self.may_be_link)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            link = "" if self.may_be_link else ", and no link"
            raise InputError(f"{self.path} must be a folder{link}; remove it, or {self._advice}") from None
        with folder:
            self._check(folder.stat())
            yield folder

    def _check(self, status: os.stat_result) -> None:
        if not is_mine(status):
            raise InputError(f"folder {self.path} belongs to user {status.st_uid}, not to this one; {self._advice}")
        if OWNERS and (mode := stat.S_IMODE(status.st_mode)) & 0o077:
            raise InputError(
                f"folder {self.path} is open to others (mode {mode:04o}); if none of them changed what is in it, run: "
                f"chmod 700 {self.path}; else remove it, or {self._advice}"
            )
        if entry := exchangeable(self.path):
            raise InputError(
                f"folder {self.path} can be exchanged by others: {entry} is theirs, or open to them; "
                f"run: chmod go-w {entry}, or {self._advice}"
            )

    def _unusable(self, problem: str | None) -> StorageError:
        return StorageError(f"nothing can be kept in {self.path}: {problem}; {self._advice}")

    @property
    def _advice(self) -> str:
        return f"name another folder in {self.variable}"


def _make(path: Path) -> None:
    """The folder and what it lies in, as far as that is missing, all for this user alone whatever the umask."""
    missing = takewhile(lambda folder: not folder.exists(), [path, *path.parents])
    for folder in reversed([*missing]):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)


def _seal(contents: bytes) -> bytes:
    return hashlib.sha256(contents).hexdigest().encode() + b"\n"
