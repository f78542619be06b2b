"""Rasters inspected before a run: digest, state on disk, unreadable blocks, scaling, and whether two lie together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.jobs.scene.consistency import check_statements, pair_warnings
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.log import EventLog
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.metadata import Statement, acquired, statement
from misgnet_runtime.raster.reader import Pair, Raster, open_pair, open_raster, stamp_of
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.statistics import find_scaling, residual_shift
from misgnet_runtime.raster.unreadable import Blocks, Tally, UnreadableBlock
from misgnet_runtime.storage.files import file_sha256
from misgnet_runtime.storage.snapshot import FileStamp


@dataclass(frozen=True)
class Date:
    """One raster: the digest of its bytes, its file's state since before they were read, how its values become RGB, and
    where its blocks lie.

    ``declared``: what is said of its pixels, and ``stated``: what its file says of them; ``acquired``: when it was
    taken, where its file says so.
    """

    path: Path
    sha256: str
    stamp: FileStamp
    scaling: Scaling
    blocks: Blocks
    declared: Declared
    stated: Statement
    acquired: datetime | None

    def check_unchanged(self) -> None:
        """InputError where the file is not the one that was read, or was written to since."""
        now = stamp_of(self.path)
        if now == self.stamp:
            return
        # Links and permissions change the last field too, and leave the bytes as they are.
        if now[:-1] != self.stamp[:-1] or file_sha256(self.path) != self.sha256:
            raise _changed(self.path)


@dataclass(frozen=True)
class Inputs:
    """Both dates, the grid of the map, the second's shift against the first, and how a thread opens them anew."""

    before: Date
    after: Date
    grid: Grid
    shift: tuple[float, float] | None
    open_pair: Callable[[], AbstractContextManager[Pair]]

    def tally(self, limit: float, found: Iterable[UnreadableBlock] = ()) -> Tally:
        """Counts unreadable blocks of both dates, beginning with those ``found``; UnreadableError above ``limit``."""
        return Tally({"before": self.before.blocks, "after": self.after.blocks}, limit, found)

    @property
    def scalings(self) -> tuple[Scaling, Scaling]:
        return self.before.scaling, self.after.scaling

    def report(self, log: EventLog) -> None:
        """Log what a user should know before the run: scalings, and warnings."""
        for date, scaling in zip(("before", "after"), self.scalings, strict=True):
            log.info(f"{date}: {scaling}")
        for name, blocks in (("before", self.before.blocks), ("after", self.after.blocks)):
            if blocks.nodata_blocks:
                some = f"{blocks.nodata_blocks:,} of {plural(blocks.count, 'block')}"
                log.info(f"{name}: {some} were never written, which is nodata")
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
    """All that is decided before the first tile; raises as :func:`open_pair` and :func:`find_scaling`.

    UnreadableError where more of a date is known to be unreadable than ``options`` allow.
    """
    with open_pair(before, after, align=options.align) as pair:
        Tally({"before": pair.before.blocks, "after": pair.after.blocks}, options.max_unreadable)
        first = look_at_date(pair.before, before, options.dates[0])
        second = look_at_date(pair.after, after, options.dates[1])
    return look_at_pair(first, second, align=options.align)


def look_at_pair(before: Date, after: Date, *, align: bool, grid: Grid | None = None) -> Inputs:
    """Two dates that were looked at, on ``grid``, that of the first without one; raises as :func:`open_pair`."""
    check_statements(before, after)
    opened = partial(open_pair, before.path, after.path, align=align, grid=grid)
    with opened() as pair:
        return Inputs(before, after, pair.grid, residual_shift(pair, (before.scaling, after.scaling)), opened)


def check_readable(path: Path, date: str, limit: float) -> None:
    """UnreadableError where more than ``limit`` percent of a raster is known to be unreadable.

    Else raises as :func:`open_raster`.
    """
    with open_raster(path, date) as raster:
        Tally({date: raster.blocks}, limit)


def look_at_date(raster: Raster, path: Path, declared: Declared) -> Date:
    """One date, open as ``raster`` on the grid of its map; raises as :func:`find_scaling`."""
    scaling = find_scaling(raster, declared)
    digest = file_sha256(path)
    if stamp_of(path) != raster.stamp:  # then it is not of the bytes that are read
        raise _changed(path)
    stated = statement(raster.file, scaling.bands, raster.colours)
    return Date(path, digest, raster.stamp, scaling, raster.blocks, declared, stated, acquired(raster.file))


def _changed(path: Path) -> InputError:
    return InputError(
        f"raster {path} was changed while it was read; when it is complete, run the command again with --restart"
    )
