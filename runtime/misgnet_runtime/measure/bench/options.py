"""What a benchmark is asked for. Cheap to import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import check, option


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured, and for how long. Each field is an option of ``misgnet-run bench``.

    Empty ``engines``, ``batches`` and ``streams`` stand for what :func:`~.matrix.make_matrix` chooses.
    """

    engines: tuple[str, ...] = option(
        (), name="engine", help="An engine, repeated for more.", show_default="all that run here"
    )
    batches: tuple[int, ...] = option(
        (), name="batch", help="Tiles per inference call, repeated for more.",
        show_default="1, 4 and the largest up to 16",
    )  # fmt: skip
    streams: tuple[int, ...] = option(
        (), help="Batches in flight at once, repeated for more.", show_default="1, and one a core, 4 at most"
    )
    threads: int | None = option(
        None, help="CPU threads shared by all streams.", minimum=1, show_default="all available cores"
    )
    seconds: float = option(5.0, help="Measured of each engine at each batch and streams, in all rounds together.")
    rounds: int = option(5, help="Rounds that these seconds are split into, the engines alternating.", minimum=1)
    warm_up: float = option(10.0, help="Seconds after which an engine that is not steady is measured anyway.")
    scene: tuple[Path, Path] | None = option(
        None, help="BEFORE.tif AFTER.tif, 8-bit RGB on one grid: also the tiles/s of predict on them, with the fastest "
        "engine and setting that was measured.",
    )  # fmt: skip

    def check(self, max_batch: int) -> None:
        """Raise UsageError for invalid numbers, or a batch that the bundle's engines do not take."""
        check(self)
        for flag, numbers in (("--batch", self.batches), ("--streams", self.streams)):
            if any(number < 1 for number in numbers):
                raise UsageError(f"{flag} is {min(numbers)}; it is 1 or more")
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds is {self.seconds}; it is above 0")
        if not 0 <= self.warm_up < math.inf:
            raise UsageError(f"--warm-up is {self.warm_up}; it is 0 or more seconds")
        if self.batches and max(self.batches) > max_batch:
            raise UsageError(f"--batch is {max(self.batches)}; the engines of this bundle take at most {max_batch}")
