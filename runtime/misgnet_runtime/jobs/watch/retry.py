"""Whose fault an error is: the pair's, the engine's, or that of a disk, which may be read or written later."""

from __future__ import annotations

import errno

from misgnet_runtime.errors import MisgnetError, StorageError

# What a path or a result itself is refused for: to wait changes nothing.
_OF_THE_PAIR = (
    errno.ENAMETOOLONG, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EILSEQ, errno.ELOOP, errno.EFBIG,
)  # fmt: skip
# What a disk that is read answers while it, or its network, does not work, or while rights are missing.
_OF_A_SOURCE = (
    errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENOTCONN, errno.EREMOTEIO, errno.EMFILE, errno.ENFILE,
)  # fmt: skip


def refused_by_disk(error: Exception) -> bool:
    """Whether the disk of the results refused, for a reason that may pass."""
    return isinstance(error, StorageError) and _number(error) not in _OF_THE_PAIR


def lacks_room(error: StorageError) -> bool:
    """Whether the disk of the results refused for want of room."""
    return _number(error) in (errno.ENOSPC, errno.EDQUOT, None)


def refused_by_source(error: Exception) -> bool:
    """Whether the disk of the pair refused, for a reason that may pass."""
    return not isinstance(error, StorageError) and _number(error) in _OF_A_SOURCE


def message_of(error: Exception) -> str:
    """The message of an error; of one that nobody foresaw with its type."""
    return str(error) if isinstance(error, MisgnetError) else f"{type(error).__name__}: {error}".removesuffix(": ")


def one_line(text: str) -> str:
    """On one line, and with what JSON cannot hold escaped: names may have bytes that are not UTF-8."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()


def _number(error: BaseException) -> int | None:
    """The system's number of an error, or of its cause."""
    if isinstance(error, OSError):
        return error.errno
    return None if error.__cause__ is None else _number(error.__cause__)
