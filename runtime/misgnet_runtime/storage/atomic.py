"""Writes results atomically: to a temporary name beside their path, then renamed."""

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
    """Raises UsageError if ``path`` exists without ``force``, or is something that ``force`` does not replace."""
    if os.path.lexists(path) and not force:
        raise UsageError(f"output {path} exists; choose another name, or replace it with --force")
    if os.path.exists(path) and not (is_file(path) or os.path.isdir(path)):  # noqa: PTH110, PTH112 - any name
        raise UsageError(f"output {path} is not a regular file, so --force does not replace it; choose another -o")


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises UsageError if an output is one of ``inputs``, under any name, or a folder that contains one."""
    read = [Path(os.path.realpath(path)) for path in inputs]
    for path in outputs:
        resolved = Path(os.path.realpath(path))
        if resolved in read:
            raise UsageError(f"output {path} is also an input; choose another -o")
        if inside := next((found for found in read if resolved in found.parents), None):
            raise UsageError(f"output {path} is a folder that contains the input {inside}; choose another -o")


def publish(temporary: Path, path: Path, *, force: bool = True) -> None:
    """Renames a finished file to ``path``; a crash at any moment leaves either the old or the new file.

    Raises:
        UsageError: ``path`` exists, even if it was created just now, and ``force`` is off.
    """
    sync(temporary)
    temporary.chmod(0o666 & ~_umask())
    if force:
        _replace(temporary, path)
    else:
        _move_to_new(temporary, path)
    sync(path.parent)


def _replace(temporary: Path, path: Path) -> None:
    """Replaces ``path``. Raises UsageError for a pipe, socket or device; the system itself refuses folders."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise UsageError(f"output {path} is not a regular file, so --force does not replace it; choose another -o")
    temporary.replace(path)


@contextmanager
def resumable_errors(path: Path) -> Iterator[None]:
    """Turns OSError into StorageError while writing files that a later run resumes from."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}; free some space or choose another -o, then rerun "
            "the command"
        ) from error


@contextmanager
def replace_file(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which replaces ``path`` when the block succeeds.

    If ``path`` is a symbolic link, the link stays and its target is replaced.

    Raises:
        UsageError: ``force`` is off and ``path`` exists, even if another process created it while the block ran.
        StorageError: The file cannot be written.
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
        with suppress(OSError):  # after success it no longer exists; a file that cannot be removed is hidden
            temporary.unlink()


def write_file(path: Path, data: bytes, *, force: bool = True) -> None:
    """Writes ``data`` to a file; see :func:`replace_file`."""
    with replace_file(path, force=force) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replace_folder(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``, which replaces ``path`` when the block succeeds.

    Only one process at a time writes ``path``; others wait. Temporary folders of killed runs are removed first: the
    system releases the locks of a dead process. An existing ``path`` is exchanged in one step if the system supports
    that. If ``path`` is a symbolic link, the link stays and its target is replaced.

    Raises:
        UsageError: ``force`` is off and ``path`` exists, even if another process created it meanwhile.
        LockTimeoutError: Another process writes ``path`` for longer than the timeout.
        StorageError: The folder cannot be written.
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
    """Makes this process the only one that writes ``path`` within the block; waits as :func:`lock.acquire` does."""
    path = Path(os.path.realpath(path))
    with ExitStack() as stack:
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(path.with_name(f".{path.name}.lock"), path, "another process is writing it"))
        yield


@contextmanager
def _disk_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turns OSError into StorageError.

    With ``temporary``, only errors of the disk and errors below ``temporary`` are turned; otherwise all of them.
    """
    try:
        yield
    except OSError as error:
        ours = temporary is None or Path(str(error.filename)).is_relative_to(temporary)
        if ours or error.errno in _DISK_ERRORS:
            raise StorageError(f"output {path} cannot be written: {error.strerror}; it was not changed") from error
        raise


def _prefix(path: Path) -> str:
    return f".{path.name}.building-"


def locked_folder(path: Path) -> tuple[Path, OpenFolder]:
    """Creates a folder beside ``path``; returns it and an object that holds its lock until it is closed."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        with suppress(FileNotFoundError):  # another run removed it as stale before it was locked
            opened = OpenFolder(folder)
            if (opened.handle is None or try_acquire(opened.handle)) and folder.exists():
                return folder, opened
            opened.close()


def remove_stale(path: Path) -> None:
    """Removes folders that :func:`locked_folder` created beside ``path`` for processes that have ended.

    If folders cannot be locked (some file systems, and Windows), they stay: they may belong to another run.
    """
    for folder in [p for p in path.parent.iterdir() if p.name.startswith(_prefix(path))]:
        with suppress(OSError), OpenFolder(folder, links=False) as opened:
            if opened.handle is not None and lock_now(opened.handle):
                shutil.rmtree(folder, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a folder, file or link if it exists; ignores errors."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _move_to_new(source: Path, target: Path) -> None:
    """Renames ``source`` and checks in the same step that ``target`` does not exist. Raises UsageError if it does."""
    if _rename(source, target, _RENAME_NOREPLACE):
        return
    try:
        if os.path.lexists(target):
            raise FileExistsError
        if source.is_dir():  # other file systems replace at most an empty folder
            source.rename(target)
        else:
            _link(source, target)
    except OSError as error:
        if not os.path.lexists(target):
            raise
        raise UsageError(
            f"output {target} was created by another process meanwhile and was not changed; choose another -o, or "
            "replace it with --force"
        ) from error


def _link(source: Path, target: Path) -> None:
    """Renames a file if ``target`` does not exist; on disks without hard links, this is not checked."""
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
    """Calls Linux's renameat2; returns False if that failed, as on systems and file systems without ``flags``."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # Windows loads no library without a name
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0)


def _umask() -> int:
    """Returns the umask of this process without setting it, because other threads may create files meanwhile."""
    found = _UMASK.search(read_text(Path("/proc/self/status")) or "")
    return int(found[1], 8) if found else 0o077  # unknown: only this user gets access


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Flushes a file's bytes, or a folder's names, to the disk."""
    if not FOLDERS_OPEN and path.is_dir():
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if FOLDERS_OPEN else os.O_RDWR)  # Windows syncs only files open for writing
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
