"""What this machine made for itself (plans, timing caches, tunings) lies outside the bundle, in its user's folders.

Opening a plan runs native code, so whoever could write there could run code as the user. A folder is used only where
nobody else can have changed it: it belongs to the user, has mode 0700, is no link, and nobody else may rename what it
lies in. Each file begins with the SHA-256 of its contents, or is named by it; that is checked before any use.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.errors import InputError, StorageError
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.lock import acquire

_ADVICE = "name another folder in MISGNET_CACHE"
_SEAL = 65  # bytes: 64 digits and a newline


class NoFolderError(InputError):
    """No folder is named in which anything could be kept: whoever reads finds nothing, whoever writes fails."""


def cache_folder() -> Path:
    """Return $MISGNET_CACHE, else misgnet in $XDG_CACHE_HOME, else in ~/.cache, also of a user without $HOME.

    Raises NoFolderError where none of them is an absolute path, InputError where $MISGNET_CACHE is relative.
    """
    found = user_folder("MISGNET_CACHE", "XDG_CACHE_HOME", ".cache", home=_home_of_user())
    if found is None:
        raise NoFolderError("there is no folder to keep results in: set MISGNET_CACHE, XDG_CACHE_HOME or HOME")
    return found


def user_folder(own: str, common: str, below_home: str, home: str = "") -> Path | None:
    """Return the folder that the variable ``own`` names, else misgnet in that of ``common``, else ``below_home``.

    ``home``: in the place of $HOME, where that is not set. What depends on the working directory is never returned:
    a relative ``common`` counts as not set, as the XDG base directory specification asks, and so do ``~`` and other
    relative homes. None where nothing is left. Raises InputError where ``own`` is relative.
    """
    if found := os.environ.get(own):
        if not Path(found).is_absolute():
            raise InputError(f"{own} is '{found}', which depends on the working directory; set it to an absolute path")
        return Path(found)
    base = os.environ.get(common, "")
    if Path(base).is_absolute():
        return Path(base, "misgnet")
    home = os.environ.get("HOME") or home
    return Path(home, below_home, "misgnet") if Path(home).is_absolute() else None


def _home_of_user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""


@dataclass(frozen=True)
class PrivateFolder:
    """A folder in the cache that only this user can read and write.

    All methods raise InputError where it is not: another's, open to others, a link, or within what others may change.
    """

    path: Path

    @classmethod
    def of(cls, name: str) -> PrivateFolder:
        """The folder ``name`` of this user's cache, which need not be there yet."""
        return cls(cache_folder() / name)

    def prepare(self) -> None:
        """Make it where it is not there; StorageError where nothing could be kept in it."""
        try:
            _make(self.path)
            _close_to_readers(self.path)
            problem = None if os.access(self.path, os.W_OK) else "no right to write there"
        except OSError as error:
            problem = str(error.strerror)
        if problem:
            raise StorageError(f"nothing can be kept in {self.path}: {problem}; {_ADVICE}")
        with self._opened():
            pass

    def read(self, name: str, limit: int) -> bytes | None:
        """The file's bytes, None where there is none; InputError where it is no file, a link or over ``limit`` bytes.

        Raises OSError where the system refuses.
        """
        try:
            with self._opened() as folder:
                handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputError(f"{self.path / name} cannot be used: it is a link") from None
            raise
        with os.fdopen(handle, "rb") as file:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{self.path / name} cannot be used: it is no file")
            if facts.st_uid != os.geteuid():
                raise InputError(f"{self.path / name} cannot be used: it belongs to user {facts.st_uid}")
            data = file.read(min(facts.st_size, limit) + 1)  # Python takes as much memory as it is asked for
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
            return sorted(os.listdir(folder))  # noqa: PTH208 - of the folder that was checked

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with self._opened() as folder, suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """For one process at a time: waits for another one, which is logged.

        Raises LockTimeoutError, which names ``what`` the other one does, where that does not end in time.
        """
        with self._opened() as folder:
            acquire(folder, self.path, f"another process of this user {what}")
            yield

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A handle of the folder, once it is known to be its user's alone. FileNotFoundError where there is none."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except NotADirectoryError:  # what Linux says of a link, too
            raise InputError(f"{self.path} must be a folder, and no link; remove it, or {_ADVICE}") from None
        try:
            _check_way(self.path)
            facts = os.fstat(handle)
            if facts.st_uid != os.geteuid():
                raise InputError(f"folder {self.path} belongs to user {facts.st_uid}, not to this one; {_ADVICE}")
            if mode := stat.S_IMODE(facts.st_mode) & 0o077:
                raise InputError(
                    f"folder {self.path} is open to others (mode {mode | 0o700:04o}), who may have changed what is in "
                    f"it; remove it, or {_ADVICE}"
                )
            yield handle
        finally:
            os.close(handle)


def _make(path: Path) -> None:
    """The folder and what it lies in, as far as that is missing, all for this user alone whatever the umask."""
    for folder in reversed([path, *path.parents]):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)


def _close_to_readers(path: Path) -> None:
    """What an earlier version left readable, but writable by its user alone, becomes private."""
    facts = path.lstat()
    if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022:
        path.chmod(0o700)


def _check_way(path: Path) -> None:
    """InputError where another user may exchange a folder that ``path`` lies in, as sshd asks of its keys' folders."""
    trusted = {0, os.geteuid(), Path("/").stat().st_uid}  # in a container root has another number
    for folder in Path(os.path.realpath(path.parent), "x").parents:
        facts = folder.stat()
        if facts.st_uid not in trusted:
            raise InputError(f"folder {folder}, in which {path.name} lies, is user {facts.st_uid}'s; {_ADVICE}")
        if facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX:
            raise InputError(
                f"folder {folder}, in which {path.name} lies, may be changed by others "
                f"(mode {stat.S_IMODE(facts.st_mode):04o}); run: chmod go-w {folder}, or {_ADVICE}"
            )


def _seal(contents: bytes) -> bytes:
    return hashlib.sha256(contents).hexdigest().encode() + b"\n"
