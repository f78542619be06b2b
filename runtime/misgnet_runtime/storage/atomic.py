"""Results appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from misgnet_runtime.errors import StorageError, UsageError
from misgnet_runtime.machine import read_text
from misgnet_runtime.storage.files import FOLDERS_OPEN, OpenFolder, is_file
from misgnet_runtime.storage.lock import lock_file, lock_now, try_acquire

_DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG,
    errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_AT_FDCWD = -100
_UMASK = re.compile(r"^Umask:\s*([0-7]+)$", re.MULTILINE)


def refuse_existing(path: Path, force: bool) -> None:
    """UsageError where ``path`` exists and ``force`` is off, or is something that ``force`` does not replace."""
    if os.path.lexists(path) and not force:
        raise UsageError(f"output {path} exists; choose another -o, or replace it with --force")
    if os.path.exists(path) and not (is_file(path) or os.path.isdir(path)):  # noqa: PTH110, PTH112 - any name
        raise UsageError(f"output {path} is not a regular file; choose another -o, --force does not replace it")


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """UsageError where an output is one of ``inputs``, under whatever name, or a folder that one lies in."""
    read = [Path(os.path.realpath(path)) for path in inputs]
    for path in outputs:
        place = Path(os.path.realpath(path))
        if place in read:
            raise UsageError(f"output {path} is an input as well; choose another -o")
        if inside := next((found for found in read if place in found.parents), None):
            raise UsageError(f"output {path} is a folder that the input {inside} lies in; choose another -o")


def publish(temporary: Path, path: Path, *, force: bool = True) -> None:
    """Give a finished file its name, so that a crash at any moment leaves the old file or the new one.

    Raises UsageError where ``path`` exists and ``force`` is off, also where it appeared just now.
    """
    sync(temporary)
    temporary.chmod(0o666 & ~_umask())
    if force:
        _replace(temporary, path)
    else:
        _move_to_new(temporary, path)
    sync(path.parent)


def _replace(temporary: Path, path: Path) -> None:
    """UsageError where that would take the place of a pipe, socket or device; the system itself refuses folders."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise UsageError(f"output {path} is not a regular file; choose another -o, --force does not replace it")
    temporary.replace(path)


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
def replace_file(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the place of ``path`` when the block succeeds.

    Where ``path`` is a symbolic link the link stays and the file it points to is replaced. Without ``force`` nothing
    is replaced: UsageError where ``path`` exists, also where another process made it while the block ran.
    """
    refuse_existing(path, force)
    path = Path(os.path.realpath(path))
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with _disk_errors(path, temporary):
            yield temporary
            publish(temporary, path, force=force)
    finally:
        with suppress(OSError):  # it is gone where all went well; what a disk keeps of it is hidden
            temporary.unlink()


def write_file(path: Path, data: bytes, *, force: bool = True) -> None:
    """:func:`replace_file` by ``data``."""
    with replace_file(path, force=force) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replace_folder(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it takes the place of ``path`` when the block succeeds.

    One process at a time makes ``path``: another one waits here, and raises LockTimeoutError after the timeout.
    Folders that a killed run left behind are removed first: the system drops a dead process's lock.
    An existing ``path`` is exchanged in one step where the system can do that; a symbolic link stays and
    what it points to is replaced. Without ``force`` nothing is replaced: UsageError where ``path`` exists, also
    where another process made it while this one waited or the block ran.
    """
    asked, path = path, Path(os.path.realpath(path))
    with alone(path):
        refuse_existing(asked, force)
        with _disk_errors(path):
            remove_stale(path)
            temporary, lock = locked_folder(path)
        try:
            with _disk_errors(path, temporary):
                yield temporary
                _sync_tree(temporary)
                temporary.chmod(0o777 & ~_umask())
                (_move_into_place if force else _move_to_new)(temporary, path)
                sync(path.parent)
        finally:
            lock.close()
            remove(temporary)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While this process is the only one that makes ``path``: another one waits, as :func:`lock.acquire` does."""
    path = Path(os.path.realpath(path))
    with ExitStack() as stack:
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(path.with_name(f".{path.name}.lock"), path, "another process is making it"))
        yield


@contextmanager
def _disk_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """StorageError for what a disk refuses; without a ``temporary`` any error is the disk's, else also those of it."""
    try:
        yield
    except OSError as error:
        ours = temporary is None or Path(str(error.filename)).is_relative_to(temporary)
        if ours or error.errno in _DISK_ERRORS:
            raise StorageError(f"output {path} cannot be written: {error.strerror}; nothing was left there") from error
        raise


def _prefix(path: Path) -> str:
    return f".{path.name}.building-"


def locked_folder(path: Path) -> tuple[Path, OpenFolder]:
    """A new folder beside ``path``, and what holds its lock until that is closed or this process ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        with suppress(FileNotFoundError):  # another run removed it as a stale one before it was locked
            opened = OpenFolder(folder)
            if (opened.handle is None or try_acquire(opened.handle)) and folder.exists():
                return folder, opened
            opened.close()


def remove_stale(path: Path) -> None:
    """Remove folders that :func:`locked_folder` made beside ``path`` for processes that have ended.

    Where folders have no locks (some file systems, and Windows) they stay: they may be another run's.
    """
    for folder in [p for p in path.parent.iterdir() if p.name.startswith(_prefix(path))]:
        with suppress(OSError), OpenFolder(folder, links=False) as opened:
            if opened.handle is not None and lock_now(opened.handle):
                shutil.rmtree(folder, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder, or the file or link that is in its place, if it is there; what a disk refuses stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _move_to_new(source: Path, target: Path) -> None:
    """Rename in one step with the check that nothing is there yet; UsageError where something is."""
    if _rename(source, target, _RENAME_NOREPLACE):
        return
    try:
        if os.path.lexists(target):
            raise FileExistsError
        if source.is_dir():  # file systems that cannot do both at once still replace no folder but an empty one
            source.rename(target)
        else:
            _link(source, target)
    except OSError as error:
        if not os.path.lexists(target):
            raise
        raise UsageError(
            f"output {target} was made by another process meanwhile and stays as it is; choose another -o, or replace "
            "it with --force"
        ) from error


def _link(source: Path, target: Path) -> None:
    """Give a file its name where that is free; a disk that knows no second names gives it without that check."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        source.rename(target)


def _move_into_place(source: Path, target: Path) -> None:
    if not os.path.lexists(target):
        source.rename(target)
    elif not _rename(source, target, _RENAME_EXCHANGE):
        aside = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        target.rename(aside / "old")
        source.rename(target)
        shutil.rmtree(aside, ignore_errors=True)


def _rename(source: Path, target: Path, flags: int) -> bool:
    """Linux's renameat2; False where it did nothing, as where the system or the file system does not know ``flags``."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # Windows loads no library without a name
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0)


def _umask() -> int:
    """The umask of this process. It is not set to find it, as other threads make files meanwhile."""
    found = _UMASK.search(read_text(Path("/proc/self/status")) or "")
    return int(found[1], 8) if found else 0o077  # not known: for this user alone


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Put a file's bytes, or a folder's names, on the disk."""
    if not FOLDERS_OPEN and path.is_dir():
        return  # there is nothing to be synced by: Windows opens no folders
    handle = os.open(path, os.O_RDONLY if FOLDERS_OPEN else os.O_RDWR)  # Windows syncs only what may be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
