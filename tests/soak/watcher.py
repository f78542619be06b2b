"""Runs ``misgnet-run watch`` with early compaction of the journal; pairs named crash-... kill the process.

``SOAK_BROKEN`` names a rule to break, for tests of the oracle.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from misgnet_runtime.cli import main as cli
from misgnet_runtime.jobs import image
from misgnet_runtime.jobs.watch import attempts, journal
from misgnet_runtime.jobs.watch import worker as work
from misgnet_runtime.pixels import PixelFormat

SHORT = 100  # lines of a journal below which it is not compacted

real = image.read_pair


def read_pair(before: Path, after: Path, pixels: PixelFormat) -> Any:
    if before.name.startswith("crash-"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(before, after, pixels)


def break_rule(name: str) -> None:
    if name == "once":  # pairs are processed again
        work.Worker.is_due = lambda self, pair: True  # type: ignore[method-assign]
        work.Worker._is_kept = lambda *_: False  # type: ignore[method-assign]
    elif name == "attempts":  # crashes are not counted
        attempts.crashed = lambda *_: False  # type: ignore[assignment]
    elif name == "mask":  # masks are shifted
        image.read_pair = lambda *paths: tuple(np.roll(date, 3, 0) for date in read_pair(*paths))
    else:
        raise ValueError(name)


if __name__ == "__main__":
    image.read_pair = read_pair
    journal.Journal.LINES = SHORT
    if broken := os.environ.get("SOAK_BROKEN"):
        break_rule(broken)
    sys.argv[0] = "misgnet-run"
    cli.main()
