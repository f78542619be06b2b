"""Decides which errors are temporary, and when a pair is retried after one.

An error is caused by the pair, by the engine, or by a disk that may work again later.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from misgnet_runtime.errors import MisgnetError, StorageError

_MAX_DELAY = 600.0  # seconds until a retry


def _numbers(*names: str) -> tuple[int, ...]:
    """Returns the error numbers of ``names`` that this system defines."""
    return tuple(getattr(errno, name) for name in names if hasattr(errno, name))


# Caused by a path or a result itself; waiting does not help.
_PAIR_ERRORS = _numbers("ENAMETOOLONG", "EISDIR", "EEXIST", "ENOTEMPTY", "EILSEQ", "ELOOP", "EFBIG")
# Caused by a source disk or its network while it does not work, or by missing permissions.
_SOURCE_ERRORS = _numbers(
    "EIO", "EACCES", "EPERM", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN", "EREMOTEIO", "EMFILE",
    "ENFILE",
)  # fmt: skip
_SPACE_ERRORS = (*_numbers("ENOSPC", "EDQUOT"), None)


def refused_by_disk(error: Exception) -> bool:
    """Returns whether the output disk refused, for a reason that may be temporary."""
    return isinstance(error, StorageError) and _number(error) not in _PAIR_ERRORS


def lacks_room(error: StorageError) -> bool:
    """Returns whether the output disk is full."""
    return _number(error) in _SPACE_ERRORS


def refused_by_source(error: Exception) -> bool:
    """Returns whether the disk of the input files refused, for a reason that may be temporary."""
    return not isinstance(error, StorageError) and _number(error) in _SOURCE_ERRORS


def message_of(error: Exception) -> str:
    """Returns the message of an error; for an unexpected error, with its type."""
    return str(error) if isinstance(error, MisgnetError) else f"{type(error).__name__}: {error}".removesuffix(": ")


def one_line(text: str) -> str:
    """Joins lines, and escapes characters that JSON cannot hold: file names may have bytes that are not UTF-8."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()


def _number(error: BaseException) -> int | None:
    """Returns the errno of an error or of its cause."""
    if isinstance(error, OSError):
        return error.errno
    return None if error.__cause__ is None else _number(error.__cause__)


@dataclass(frozen=True)
class _Refused:
    message: str
    delay: float
    until: float


class Backoff:
    """Delays pairs that the output disk refused, for longer each time, so that they do not block other pairs.

    ``first``: seconds until the first retry. The delay doubles each time, up to 10 minutes.
    """

    def __init__(self, first: float) -> None:
        self._first = first
        self._refused: dict[str, _Refused] = {}

    def refuse(self, pair: str, message: str, now: float) -> None:
        known = self._refused.get(pair)
        delay = self._first if known is None else min(2 * known.delay, max(self._first, _MAX_DELAY))
        self._refused[pair] = _Refused(message, delay, now + delay)

    def allows(self, pair: str, now: float) -> bool:
        """Returns whether the pair may be tried at ``now`` (seconds of a monotonic clock)."""
        known = self._refused.get(pair)
        return known is None or now >= known.until

    def forget(self, pair: str) -> None:
        self._refused.pop(pair, None)

    def keep(self, pairs: Iterable[str]) -> None:
        """Forgets all pairs except ``pairs``."""
        kept = set(pairs)
        self._refused = {name: refused for name, refused in self._refused.items() if name in kept}

    def remarks(self) -> list[str]:
        return [f"{name} is waiting: {refused.message}" for name, refused in self._refused.items()]
