"""Locks between processes: flock, or msvcrt on Windows. The system drops a dead process's lock by itself."""

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

    # Windows refuses to read what is locked, so one byte is locked far behind all that is kept; positions have 31 bits.
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
        """Lock an open file or folder; False where another process holds it. OSError where there are no locks."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


DEFAULT_TIMEOUT = 60.0  # seconds
_POLL = 0.1  # seconds between two attempts
_timeout = DEFAULT_TIMEOUT


def use_lock_timeout(seconds: float) -> float:
    """Wait at most ``seconds`` for any lock from now on, in this process; UsageError below 0."""
    global _timeout  # noqa: PLW0603 - an option of the whole process
    if not seconds >= 0:
        raise UsageError(f"--lock-timeout is {seconds}; it is 0 or more seconds")
    _timeout = seconds
    return seconds


def lock_timeout() -> float:
    """Seconds that :func:`acquire` waits at most."""
    return _timeout


def try_acquire(handle: int) -> bool:
    """Lock an open file or folder for as long as it is open here; False where another process holds it.

    A file system without locks counts as locked: then it is the user who must not start two.
    """
    try:
        return lock_now(handle)
    except OSError:
        return True


def acquire(handle: int, path: Path, what: str) -> None:
    """Lock an open file or folder, waiting for it: that is logged once.

    Args:
        handle: its descriptor; the lock is held until it is closed.
        path: what to call it in messages.
        what: what the other process does, as in "another process is writing the bundle".

    Raises:
        LockTimeoutError: after :func:`lock_timeout` seconds.
    """
    if try_acquire(handle):
        return
    current().info(f"waiting for the lock on {path}: {what}")
    end = time.monotonic() + _timeout
    while not try_acquire(handle):
        if time.monotonic() >= end:
            raise LockTimeoutError(
                f"{path} is still locked after {_timeout:g} s: {what}; wait until it has ended, or wait longer with "
                "--lock-timeout"
            )
        time.sleep(_POLL)


@contextmanager
def lock_folder(folder: OpenFolder, what: str) -> Iterator[None]:
    """Hold the lock of an open folder, on Windows that of a file beside it; as :func:`acquire`.

    Elsewhere the lock is held until the folder is closed, which may be later.
    """
    if folder.handle is not None:
        acquire(folder.handle, folder.path, what)
        yield
        return
    with lock_file(folder.path.with_name(f".{folder.path.name}.lock"), folder.path, what):
        yield


@contextmanager
def lock_file(file: Path, path: Path, what: str) -> Iterator[None]:
    """Hold the lock of ``file``, which is made for that and removed; ``path`` and ``what`` as :func:`acquire`.

    Raises LockTimeoutError, and OSError where the file cannot be made.
    """
    handle = _held(file, path, what)
    try:
        yield
    finally:
        with suppress(OSError):  # an empty hidden file may stay, as always on Windows, where it is open
            file.unlink()
        os.close(handle)


def _held(file: Path, path: Path, what: str) -> int:
    """A handle that holds the lock of the file that is there now: the process before may have removed its own."""
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
    except PermissionError:  # another user's file is locked without writing
        return open_unlinked(file)
