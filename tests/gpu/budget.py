"""Keeps a run within its time limit: each part has a share, and what a part leaves over is for the parts after it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu.record import PartName

WRITING = 5.0  # seconds kept for writing the record
SHARES: Mapping[PartName, float] = {"driver": 0.12, "engines": 0.44, "network": 0.44}


@dataclass(frozen=True)
class Budget:
    """The time limit of a run that began at ``start`` on ``clock``, in seconds."""

    limit: float
    parts: tuple[PartName, ...]
    start: float
    clock: Callable[[], float] = time.time

    @property
    def used(self) -> float:
        return self.clock() - self.start

    def left(self, part: PartName) -> float:
        """Returns the seconds left to ``part``, 0 if its share and what earlier parts left over are used up."""
        done = self.parts[: self.parts.index(part) + 1]
        share = sum(SHARES[name] for name in done) / sum(SHARES[name] for name in self.parts)
        return max(0.0, share * (self.limit - WRITING) - self.used)


@dataclass(frozen=True)
class Finished:
    """A command that ended, or was ended because its time was up."""

    code: int | None  # None: ended at its time limit
    output: str  # of both streams
    seconds: float

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else "it printed nothing"


def run_command(command: Sequence[str], seconds: float, folder: Path, environment: Mapping[str, str]) -> Finished:
    """Runs a command in ``folder`` for at most ``seconds``; then it and its children are killed."""
    start = time.monotonic()
    with subprocess.Popen(
        command, cwd=folder, env=dict(environment), start_new_session=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
            code: int | None = process.returncode
        except BaseException as error:  # at an interrupt, too, nothing may stay behind
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            output, _ = process.communicate()
            code = None
    return Finished(code, output, time.monotonic() - start)
