"""Rasters looked at before a run: their digests, their state on disk, their scalings, and whether two lie together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from misgnet_runtime.bundle import file_sha256
from misgnet_runtime.errors import InputError
from misgnet_runtime.log import EventLog
from misgnet_runtime.scenes.agreement import check_statements, pair_warnings
from misgnet_runtime.scenes.grids import Grid
from misgnet_runtime.scenes.interpretation import Statement, acquired, statement
from misgnet_runtime.scenes.options import Declared, SceneOptions
from misgnet_runtime.scenes.sampling import find_scaling, residual_shift
from misgnet_runtime.scenes.scaling import Scaling
from misgnet_runtime.scenes.source import Pair, Raster, open_pair


@dataclass(frozen=True)
class Date:
    """One raster: its digest, its size and time on disk, and how its values become RGB.

    ``declared``: what is said of its pixels, and ``stated``: what its file says of them; ``acquired``: when it was
    taken, where its file says so.
    """

    path: Path
    sha256: str
    stamp: tuple[int, int]
    scaling: Scaling
    declared: Declared
    stated: Statement
    acquired: datetime | None

    def check_unchanged(self) -> None:
        """InputError where the file is not what was looked at."""
        if _stamp(self.path) != self.stamp:
            raise InputError("an input raster was changed while it was read; start anew with --restart")


@dataclass(frozen=True)
class Inputs:
    """Both dates, the grid of the map, the second's shift against the first, and how a thread opens them anew."""

    before: Date
    after: Date
    grid: Grid
    shift: tuple[float, float] | None
    open_pair: Callable[[], AbstractContextManager[Pair]]

    @property
    def scalings(self) -> tuple[Scaling, Scaling]:
        return self.before.scaling, self.after.scaling

    def report(self, log: EventLog) -> None:
        """Log what a user should know before the run: scalings, and warnings."""
        for date, scaling in zip(("before", "after"), self.scalings, strict=True):
            log.info(f"{date}: {scaling}")
        self.warn(log)

    def warn(self, log: EventLog) -> None:
        """Log the warnings alone."""
        for warning in self.warnings():
            log.warning(warning)

    def warnings(self) -> list[str]:
        found = pair_warnings(self.before, self.after)
        if self.shift and max(map(abs, self.shift)) > 1:
            found.append(
                f"the second date lies about {self.shift[0]:+.0f} rows and {self.shift[1]:+.0f} columns beside "
                "the first; what does not move may be taken for change: register them first"
            )
        return found


def look_at(before: Path, after: Path, options: SceneOptions) -> Inputs:
    """All that is decided before the first tile; raises as :func:`open_pair` and :func:`find_scaling`."""
    with open_pair(before, after, align=options.align) as pair:
        first = look_at_date(pair.before, before, options.before)
        second = look_at_date(pair.after, after, options.after)
    return look_at_pair(first, second, align=options.align)


def look_at_pair(before: Date, after: Date, *, align: bool, grid: Grid | None = None) -> Inputs:
    """Two dates that were looked at, on ``grid``, that of the first without one; raises as :func:`open_pair`."""
    check_statements(before, after)
    opened = partial(open_pair, before.path, after.path, align=align, grid=grid)
    with opened() as pair:
        return Inputs(before, after, pair.grid, residual_shift(pair, (before.scaling, after.scaling)), opened)


def look_at_date(raster: Raster, path: Path, declared: Declared) -> Date:
    """One date, open as ``raster`` on the grid of its map; raises as :func:`find_scaling`."""
    scaling = find_scaling(raster, declared)
    stamp = _stamp(path)
    stated = statement(raster.source, scaling.bands)
    return Date(path, file_sha256(path), stamp, scaling, declared, stated, acquired(raster.source))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"input {error.filename} cannot be read any more: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns
