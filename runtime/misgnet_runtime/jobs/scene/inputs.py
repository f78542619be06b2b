"""Inspects rasters before a run: digest, file state, unreadable blocks, scaling, and the shift between two dates."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime

from misgnet_runtime.formatting import plural
from misgnet_runtime.jobs.scene.consistency import check_statements, pair_warnings
from misgnet_runtime.jobs.scene.ground import WHOLE, Ground, find_ground
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.log import EventLog
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.geotiff import load_rasterio
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.metadata import UNSTATED, BandMetadata
from misgnet_runtime.raster.reader import Pair, Raster, move_after
from misgnet_runtime.raster.registration import Registration, estimate_offset
from misgnet_runtime.raster.resolution import ground_resolution, resolution_warning
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.source import Identity, RasterFile, changed
from misgnet_runtime.raster.statistics import check_declared, find_scaling, residual_shift
from misgnet_runtime.raster.unreadable import Blocks, Tally, UnreadableBlock


@dataclass(frozen=True, kw_only=True)
class Date:
    """Properties of one date's raster."""

    origin: RasterFile  # what it is read from
    identity: Identity  # of the content
    state: Hashable  # of the file, taken before the content was read
    scaling: Scaling  # how its values become the network's samples
    blocks: Blocks  # positions of its blocks in the file
    declared: Declared  # the user's options about its pixels
    stated: BandMetadata  # the file's metadata about its pixels
    acquired: datetime | None  # acquisition time, if the file or its STAC Item states it
    about: str | None = None  # what a STAC Item states about the pixels, for the log

    def lines(self) -> list[str]:
        """Describes the pixels for the log."""
        return [*([self.about] if self.about else []), str(self.scaling)]

    def check_unchanged(self) -> None:
        """Raises InputError if the file was replaced or written to since it was read."""
        self.origin.check_unchanged(self.state, self.identity)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Both dates and the grid of the map."""

    before: Date
    after: Date
    grid: Grid
    shift: tuple[float, float] | None  # estimated offset of AFTER from BEFORE in rows and columns
    ground: Ground = WHOLE
    registration: Registration | None = None  # by which AFTER was moved

    def tally(self, limit: float, found: Iterable[UnreadableBlock] = ()) -> Tally:
        """Returns a counter of both dates' unreadable blocks, starting with ``found``.

        It raises UnreadableError above ``limit`` percent.
        """
        return Tally({"before": self.before.blocks, "after": self.after.blocks}, limit, found)

    @property
    def scalings(self) -> tuple[Scaling, Scaling]:
        return self.before.scaling, self.after.scaling

    def report(self, log: EventLog) -> None:
        """Logs scalings, blocks that were never written, and warnings."""
        for name, date in (("before", self.before), ("after", self.after)):
            for line in date.lines():
                log.info(f"{name}: {line}")
        for name, blocks in (("before", self.before.blocks), ("after", self.after.blocks)):
            if blocks.nodata_blocks:
                some = f"{blocks.nodata_blocks:,} of {plural(blocks.count, 'block')}"
                log.info(f"{name}: {some} were never written and count as nodata")
        if self.registration:
            log.info(f"after: moved back by its offset from before: {self.registration}")
        for warning in self.warnings():
            log.warning(warning)

    def warnings(self) -> list[str]:
        found = [*pair_warnings(self.before, self.after), *(self.ground.area.warnings if self.ground.area else ())]
        if self.shift and max(map(abs, self.shift)) > 1:
            found.append(
                f"AFTER appears offset from BEFORE by about {self.shift[0]:+.0f} rows and {self.shift[1]:+.0f} "
                "columns. Use --coregister shift, or static objects may be reported as change."
            )
        return found


@contextmanager
def inspected(pair: Pair, options: SceneOptions) -> Iterator[tuple[Pair, Inputs]]:
    """Inspects an open pair before its first tile is read; yields it, with AFTER moved if ``options`` ask for it.

    Raises:
        UnreadableError: A larger share of a date is unreadable than ``options`` allow.
        InputError: As :func:`check_declared`, :func:`inspect_date`, :func:`check_statements`, :func:`find_ground` and
            :func:`estimate_offset`.
        UnavailableError: scikit-image is missing, and ``options`` ask for a registration.
    """
    Tally({"before": pair.before.blocks, "after": pair.after.blocks}, options.max_unreadable)
    ground = find_ground(pair, options.aoi)
    check_declared((pair.before, options.dates[0]), (pair.after, options.dates[1]))
    before, after = inspect_date(pair.before, options.dates[0]), inspect_date(pair.after, options.dates[1])
    check_statements(before, after)
    with ExitStack() as stack:
        registration = None
        if options.coregister:
            registration = estimate_offset(pair, (before.scaling, after.scaling), ground.shared(pair.grid))
            pair = stack.enter_context(move_after(pair, registration.rows, registration.columns))
        shift = residual_shift(pair, (before.scaling, after.scaling), ground.shared(pair.grid))
        yield (
            pair,
            Inputs(before=before, after=after, grid=pair.grid, shift=shift, ground=ground, registration=registration),
        )


def inspect_pair(pair: Pair, before: Date, after: Date) -> Inputs:
    """Combines two inspected dates, open as ``pair``; raises as :func:`check_statements`."""
    check_statements(before, after)
    shift = residual_shift(pair, (before.scaling, after.scaling))
    return Inputs(before=before, after=after, grid=pair.grid, shift=shift)


def warn_of_resolution(raster: Raster, trained: float | None, log: EventLog) -> None:
    """Logs a warning if the raster's own resolution is not that of the training data, in metres per pixel (if any)."""
    if trained is None:
        return
    found = ground_resolution(load_rasterio("a scene"), Grid.of(raster.file))
    if warning := resolution_warning(found, trained, raster.origin.name):
        log.warning(warning)


def check_readable(raster: Raster, limit: float) -> None:
    """Raises UnreadableError if more than ``limit`` percent of an open raster is known to be unreadable."""
    Tally({raster.date: raster.blocks}, limit)


def inspect_date(raster: Raster, declared: Declared) -> Date:
    """Inspects one date, open on the grid of its map.

    Raises:
        InputError: As :func:`find_scaling`, or the file changed meanwhile.
    """
    scaling = find_scaling(raster, declared)
    identity = raster.origin.identity()
    if raster.origin.state() != raster.state:  # the identity may not be that of the bytes that were opened
        raise changed(raster.origin)
    return Date(
        origin=raster.origin, identity=identity, state=raster.state, scaling=scaling, blocks=raster.blocks,
        declared=declared, stated=raster.stated(scaling.bands), acquired=raster.acquired(),
        about=_about(raster, scaling.bands),
    )  # fmt: skip


def _about(raster: Raster, bands: tuple[int, ...]) -> str | None:
    """Describes the bands that a STAC Item states; None if the raster is not an item's."""
    stated = raster.stated(bands)
    if not stated.stated:
        return None
    names = [str(band) if colour in UNSTATED else colour for band, colour in zip(bands, stated.colours, strict=True)]
    parts = [f"bands {', '.join(names)}"]
    numbers = [("scale", stated.scales), ("offset", stated.offsets)] if stated.scaled else []
    for name, values in (*numbers, ("nodata", raster.nodata(bands))):
        some = dict.fromkeys("none" if value is None else f"{value:.6g}" for value in values)
        parts += [f"{name} {', '.join(some)}"] * (list(some) != ["none"])
    return f"{raster.origin}: {'; '.join(parts)} (from the STAC Item)"
