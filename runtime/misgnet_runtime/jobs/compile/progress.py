"""Tells how far a build is. It takes minutes on a small board, which must not pass in silence."""

from __future__ import annotations

import time
from collections.abc import Callable

from misgnet_runtime.callables import Progress
from misgnet_runtime.log import EventLog

STEPS = 1000
_EVERY = 10.0  # seconds between two lines
_EARLIEST = 0.02  # what is extrapolated from less is no estimate


class BuildProgress:
    """A bar for whoever looks on, and a line now and then for logs."""

    def __init__(self, what: str, bar: Progress, log: EventLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._bar, self._log, self._clock = what, bar, log, clock
        self._started = self._told = clock()

    def __call__(self, share: float) -> None:
        """``share``: how much of the build is done, 0 to 1."""
        self._bar(round(STEPS * share), STEPS)
        if (now := self._clock()) - self._told < _EVERY:
            return
        self._told = now
        left = seconds_left(now - self._started, share)
        words = "" if left is None else f", about {duration(left)} left"
        percent = round(100 * share)
        self._log.info(f"{self._what}: {percent} %{words}", engine=self._what, percent=percent, seconds_left=left)


def seconds_left(elapsed: float, share: float) -> float | None:
    """If the rest goes on as what is done; None as long as nothing can be said."""
    return elapsed * (1 - share) / share if share >= _EARLIEST else None


def duration(seconds: float) -> str:
    """ "40 s", or "12 min" from a minute and a half on."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
