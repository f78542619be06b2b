"""Options of a benchmark. Cheap to import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import check, option


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of a benchmark: its engines, settings and duration. Each field is an option of ``misgnet-run bench``.

    If ``engines``, ``batches`` or ``streams`` is empty, :func:`~.matrix.make_matrix` chooses.
    """

    engines: tuple[str, ...] = option(
        (), name="engine", help="Engine to measure; repeat for several (default: all that run here).", show_default=""
    )
    batches: tuple[int, ...] = option(
        (), name="batch", show_default="",
        help="Tiles per inference call; repeat for several (default: 1, 4 and the largest up to 16).",
    )  # fmt: skip
    streams: tuple[int, ...] = option(
        (), show_default="",
        help="Batches in flight at once; repeat for several (default: 1, and one per core up to 4).",
    )  # fmt: skip
    threads: int | None = option(
        None, help="CPU threads shared by all streams (default: all available cores).", minimum=1
    )
    seconds: float = option(5.0, help="Measuring time of each engine at each batch and streams, in all rounds.")
    rounds: int = option(5, help="Rounds into which --seconds is split; the engines alternate.", minimum=1)
    warm_up: float = option(10.0, help="Maximum warm-up in seconds; an engine that is not steady is then measured.")
    scene: tuple[Path, Path] | None = option(
        None, help="Also measure predict on BEFORE.tif AFTER.tif (on one grid, without scaling) with the fastest "
        "engine and setting (default: no scene).",
    )  # fmt: skip

    def check(self, max_batch: int) -> None:
        """Raises UsageError for invalid numbers, or a batch size that the bundle's engines do not support."""
        check(self)
        for flag, numbers in (("--batch", self.batches), ("--streams", self.streams)):
            if any(number < 1 for number in numbers):
                raise UsageError(f"{flag} is {min(numbers)}; expected 1 or more")
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds is {self.seconds}; expected above 0")
        if not 0 <= self.warm_up < math.inf:
            raise UsageError(f"--warm-up is {self.warm_up}; expected 0 or more")
        if self.batches and max(self.batches) > max_batch:
            raise UsageError(f"--batch is {max(self.batches)}; the engines of this bundle support at most {max_batch}")
