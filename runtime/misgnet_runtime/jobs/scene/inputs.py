"""Rasters inspected before a run: digest, state on disk, unreadable blocks, scaling, and whether two lie together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.jobs.scene.consistency import check_statements, pair_warnings
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.log import EventLog
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.metadata import BandMetadata, acquired, band_metadata
from misgnet_runtime.raster.reader import Pair, Raster, stamp_of
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.statistics import find_scaling, residual_shift
from misgnet_runtime.raster.unreadable import Blocks, Tally, UnreadableBlock
from misgnet_runtime.storage.files import file_sha256
from misgnet_runtime.storage.snapshot import FileStamp


@dataclass(frozen=True, kw_only=True)
class Date:
    """What one date's raster was found to be.

    Attributes:
        sha256: Digest of the file's bytes.
        stamp: State of the file since before they were read.
        scaling: How its values become RGB.
        blocks: Where its blocks lie in the file.
        declared: What the user says of its pixels.
        stated: What the file says of them.
        acquired: When it was taken, where the file says so.
    """

    path: Path
    sha256: str
    stamp: FileStamp
    scaling: Scaling
    blocks: Blocks
    declared: Declared
    stated: BandMetadata
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
    """Both dates, the grid of the map, and the second's shift against the first, where it could be found."""

    before: Date
    after: Date
    grid: Grid
    shift: tuple[float, float] | None

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


def inspect(pair: Pair, options: SceneOptions) -> Inputs:
    """Decide all that is decided of a pair before its first tile.

    Raises:
        UnreadableError: More of a date is known to be unreadable than ``options`` allow.
        InputError: As :func:`inspect_date` and :func:`inspect_pair`.
    """
    Tally({"before": pair.before.blocks, "after": pair.after.blocks}, options.max_unreadable)
    return inspect_pair(pair, inspect_date(pair.before, options.dates[0]), inspect_date(pair.after, options.dates[1]))


def inspect_pair(pair: Pair, before: Date, after: Date) -> Inputs:
    """Put together two dates that were inspected, open as ``pair``; raises as :func:`check_statements`."""
    check_statements(before, after)
    return Inputs(before, after, pair.grid, residual_shift(pair, (before.scaling, after.scaling)))


def check_readable(raster: Raster, limit: float) -> None:
    """UnreadableError where more than ``limit`` percent of an open raster is known to be unreadable."""
    Tally({raster.date: raster.blocks}, limit)


def inspect_date(raster: Raster, declared: Declared) -> Date:
    """Inspect one date, open on the grid of its map.

    Raises:
        InputError: As :func:`find_scaling`, or the file changes meanwhile.
    """
    scaling = find_scaling(raster, declared)
    digest = file_sha256(raster.path)
    if stamp_of(raster.path) != raster.stamp:  # then it is not of the bytes that are read
        raise _changed(raster.path)
    return Date(
        path=raster.path, sha256=digest, stamp=raster.stamp, scaling=scaling, blocks=raster.blocks, declared=declared,
        stated=band_metadata(raster.file, scaling.bands, raster.colours), acquired=acquired(raster.file),
    )  # fmt: skip


def _changed(path: Path) -> InputError:
    return InputError(
        f"raster {path} was changed while it was read; when it is complete, run the command again with --restart"
    )
