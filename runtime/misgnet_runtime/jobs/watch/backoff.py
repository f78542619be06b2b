"""Pairs that the disk of the results refused: tried again later and later, so that others are not kept from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_LONGEST = 600.0  # seconds until a pair is tried again


@dataclass(frozen=True)
class _Refused:
    message: str
    delay: float
    until: float


class Backoff:
    """``first``: seconds until the second attempt; then twice as many each time, 10 minutes at most."""

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
