"""Locks files and folders between processes: flock, or msvcrt on Windows. The system releases a dead process's lock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from misgnet_runtime.errors import LockTimeoutError, UsageError
from misgnet_runtime.log import current
from misgnet_runtime.storage.files import READ, OpenFolder, open_unlinked

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    # Windows refuses to read locked bytes, so the lock is one byte far beyond the end of any file; positions have 31
    # bits.
    _BYTE = (1 << 31) - 2

    def lock_now(handle: int) -> bool:
        position = os.lseek(handle, 0, os.SEEK_CUR)
        os.lseek(handle, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except PermissionError:
            return False
        finally:
            os.lseek(handle, position, os.SEEK_SET)
        return True

else:

    def lock_now(handle: int) -> bool:
        """Locks an open file or folder; returns False if another process holds it. OSError: locks are unsupported."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


DEFAULT_TIMEOUT = 60.0  # seconds
_POLL = 0.1  # seconds between two attempts
_timeout = DEFAULT_TIMEOUT


def use_lock_timeout(seconds: float) -> float:
    """Sets how long this process waits for any lock. Raises UsageError for less than 0 seconds."""
    global _timeout  # noqa: PLW0603 - an option of the whole process
    if not seconds >= 0:
        raise UsageError(f"--lock-timeout is {seconds}; expected 0 or more seconds")
    _timeout = seconds
    return seconds


def lock_timeout() -> float:
    """Returns how long :func:`acquire` waits at most, in seconds."""
    return _timeout


def try_acquire(handle: int) -> bool:
    """Locks an open file or folder for as long as it stays open; returns False if another process holds it.

    Also returns True if the file system does not support locks: then users must not start two processes.
    """
    try:
        return lock_now(handle)
    except OSError:
        return True


def acquire(handle: int, path: Path, what: str) -> None:
    """Locks an open file or folder; waits if another process holds it, and logs that once.

    Args:
        handle: Its descriptor; the lock is held until the descriptor is closed.
        path: Its name in messages.
        what: What the other process does, for example "another process is writing the bundle".

    Raises:
        LockTimeoutError: The lock was not released within :func:`lock_timeout` seconds.
    """
    if try_acquire(handle):
        return
    current().info(f"waiting for the lock on {path}: {what}")
    end = time.monotonic() + _timeout
    while not try_acquire(handle):
        if time.monotonic() >= end:
            raise LockTimeoutError(
                f"{path} is still locked after {_timeout:g} s: {what}; wait until it has finished, or increase "
                "--lock-timeout"
            )
        time.sleep(_POLL)


@contextmanager
def lock_folder(folder: OpenFolder, what: str) -> Iterator[None]:
    """Locks an open folder, or on Windows a file beside it, within the block; see :func:`acquire`.

    On other systems, the lock is held until the folder is closed.
    """
    if folder.handle is not None:
        acquire(folder.handle, folder.path, what)
        yield
        return
    with lock_file(folder.path.with_name(f".{folder.path.name}.lock"), folder.path, what):
        yield


@contextmanager
def lock_file(file: Path, path: Path, what: str) -> Iterator[None]:
    """Creates, locks and finally removes ``file``; ``path`` and ``what`` as in :func:`acquire`.

    Raises:
        LockTimeoutError: Another process holds the lock for too long.
        OSError: The file cannot be created.
    """
    handle = _held(file, path, what)
    try:
        yield
    finally:
        with suppress(OSError):  # an empty hidden file may stay; on Windows it always does, because it is still open
            file.unlink()
        os.close(handle)


def _held(file: Path, path: Path, what: str) -> int:
    """Returns a descriptor that holds the lock of the current file; the previous process may have removed its file."""
    while True:
        handle = _open(file)
        try:
            acquire(handle, path, what)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), file.lstat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _open(file: Path) -> int:
    try:
        return open_unlinked(file, READ | os.O_RDWR | os.O_CREAT)
    except PermissionError:  # another user's file: a lock does not need write access
        return open_unlinked(file)
