"""Results appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from misgnet_runtime.errors import StorageError, UsageError

_DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG,
    errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def refuse_existing(path: Path, force: bool) -> None:
    """UsageError where ``path`` exists and ``force`` is off."""
    if os.path.lexists(path) and not force:
        raise UsageError(f"output {path} exists; choose another -o, or replace it with --force")


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """UsageError where an output is one of ``inputs``, under whatever name."""
    read = set(map(os.path.realpath, inputs))
    for path in outputs:
        if os.path.realpath(path) in read:
            raise UsageError(f"output {path} is an input as well; choose another -o")


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, so that a crash at any moment leaves the old file or the new one."""
    sync(temporary)
    temporary.chmod(0o666 & ~_umask())
    temporary.replace(path)
    sync(path.parent)


@contextmanager
def resumable_errors(path: Path) -> Iterator[None]:
    """Around writing only what a later run goes on with: StorageError where the system refuses."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}; make room or choose another -o, and run the "
            "same command again"
        ) from error


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the place of ``path`` when the block succeeds.

    Where ``path`` is a symbolic link the link stays and the file it points to is replaced.
    """
    path = Path(os.path.realpath(path))
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with _disk_errors(path):
            yield temporary
            publish(temporary, path)
    finally:
        with suppress(OSError):  # it is gone where all went well; what a disk keeps of it is hidden
            temporary.unlink()


def write_file(path: Path, data: bytes) -> None:
    """:func:`replace_file` by ``data``."""
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it takes the place of ``path`` when the block succeeds.

    Folders that a killed run left behind are removed first: the system drops a dead process's lock.
    An existing ``path`` is exchanged in one step where the system can do that; a symbolic link stays and
    what it points to is replaced.
    """
    path = Path(os.path.realpath(path))
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        temporary, lock = locked_folder(path)
    try:
        with _disk_errors(path):
            yield temporary
            _sync_tree(temporary)
            temporary.chmod(0o777 & ~_umask())
            _move_into_place(temporary, path)
            sync(path.parent)
    finally:
        os.close(lock)
        _remove(temporary)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise StorageError(f"output {path} cannot be written: {error.strerror}; nothing was left there") from error
        raise


def _prefix(path: Path) -> str:
    return f".{path.name}.building-"


def locked_folder(path: Path) -> tuple[Path, int]:
    """A new folder beside ``path`` and a handle that holds its lock for as long as this process lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        with suppress(FileNotFoundError):  # another run removed it as a stale one before it was locked
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a file system without locks: then no run removes another's folder either
                fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.exists():
                return folder, handle
            os.close(handle)


def remove_stale(path: Path) -> None:
    """Remove folders that :func:`locked_folder` made beside ``path`` for processes that have ended."""
    for folder in [p for p in path.parent.iterdir() if p.name.startswith(_prefix(path))]:
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    """Remove a folder, or the file that was in its place, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _move_into_place(source: Path, target: Path) -> None:
    if not os.path.lexists(target):
        source.rename(target)
    elif not _exchange(source, target):
        aside = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        target.rename(aside / "old")
        source.rename(target)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step (Linux renameat2); False where the system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Put a file's bytes, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
