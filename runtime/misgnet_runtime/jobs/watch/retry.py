"""Which errors may pass, and when a pair that met one is tried again.

An error is the pair's fault, the engine's, or that of a disk, which may be read or written later.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from misgnet_runtime.errors import MisgnetError, StorageError

_LONGEST = 600.0  # seconds until a pair is tried again


def _numbers(*names: str) -> tuple[int, ...]:
    """Those of the system's error numbers that it has."""
    return tuple(getattr(errno, name) for name in names if hasattr(errno, name))


# What a path or a result itself is refused for: to wait changes nothing.
_OF_THE_PAIR = _numbers("ENAMETOOLONG", "EISDIR", "EEXIST", "ENOTEMPTY", "EILSEQ", "ELOOP", "EFBIG")
# What a disk that is read answers while it, or its network, does not work, or while rights are missing.
_OF_A_SOURCE = _numbers(
    "EIO", "EACCES", "EPERM", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN", "EREMOTEIO", "EMFILE",
    "ENFILE",
)  # fmt: skip
_OF_ROOM = (*_numbers("ENOSPC", "EDQUOT"), None)


def refused_by_disk(error: Exception) -> bool:
    """Whether the disk of the results refused, for a reason that may pass."""
    return isinstance(error, StorageError) and _number(error) not in _OF_THE_PAIR


def lacks_room(error: StorageError) -> bool:
    """Whether the disk of the results refused for want of room."""
    return _number(error) in _OF_ROOM


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


@dataclass(frozen=True)
class _Refused:
    message: str
    delay: float
    until: float


class Backoff:
    """Pairs that the disk of the results refused: tried again later and later, so that others are not kept from it.

    ``first``: seconds until the second attempt; then twice as many each time, 10 minutes at most.
    """

    def __init__(self, first: float) -> None:
        self._first = first
        self._refused: dict[str, _Refused] = {}

    def refuse(self, pair: str, message: str, now: float) -> None:
        known = self._refused.get(pair)
        delay = self._first if known is None else min(2 * known.delay, max(self._first, _LONGEST))
        self._refused[pair] = _Refused(message, delay, now + delay)

    def allows(self, pair: str, now: float) -> bool:
        """Whether the pair may be tried at ``now``, in seconds of a clock that never goes back."""
        known = self._refused.get(pair)
        return known is None or now >= known.until

    def forget(self, pair: str) -> None:
        self._refused.pop(pair, None)

    def keep(self, pairs: Iterable[str]) -> None:
        """Forget all others."""
        kept = set(pairs)
        self._refused = {name: refused for name, refused in self._refused.items() if name in kept}

    def remarks(self) -> list[str]:
        return [f"{name} waits: {refused.message}" for name, refused in self._refused.items()]
