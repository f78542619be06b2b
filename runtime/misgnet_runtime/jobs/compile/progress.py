"""Reports the progress of a build, which takes minutes on a small board."""

from __future__ import annotations

import time
from collections.abc import Callable

from misgnet_runtime.callables import Progress
from misgnet_runtime.log import EventLog

STEPS = 1000
_EVERY = 10.0  # seconds between two log lines
_EARLIEST = 0.02  # smallest share of the build from which the remaining time is estimated


class BuildProgress:
    """Updates a progress bar, and logs a line every few seconds."""

    def __init__(self, name: str, bar: Progress, log: EventLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._bar, self._log, self._clock = name, bar, log, clock
        self._started = self._last_line = clock()

    def __call__(self, share: float) -> None:
        """Reports that ``share`` (0 to 1) of the build is done."""
        self._bar(round(STEPS * share), STEPS)
        if (now := self._clock()) - self._last_line < _EVERY:
            return
        self._last_line = now
        left = seconds_left(now - self._started, share)
        estimate = "" if left is None else f", about {duration(left)} left"
        percent = round(100 * share)
        self._log.info(f"{self._name}: {percent} %{estimate}", engine=self._name, percent=percent, seconds_left=left)


def seconds_left(elapsed: float, share: float) -> float | None:
    """Extrapolates the remaining time linearly; returns None if too little is done for an estimate."""
    return elapsed * (1 - share) / share if share >= _EARLIEST else None


def duration(seconds: float) -> str:
    """Formats a duration as "40 s", or from 90 seconds as "12 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
