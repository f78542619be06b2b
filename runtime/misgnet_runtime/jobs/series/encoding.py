"""Encodes one date, tile by tile, into a file of features; written atomically and resumable."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.callables import Image, Progress
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.split_detector import SplitDetector, SplitOpener
from misgnet_runtime.jobs.journal import Journal, Raw, discard_progress, open_journal, was_renamed
from misgnet_runtime.jobs.scene.inputs import Date, check_readable, inspect_date
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.pipeline import run_pipeline
from misgnet_runtime.jobs.scene.strips import Reading, strips
from misgnet_runtime.jobs.series.features import (
    FORMAT,
    Block,
    FeatureFile,
    Footer,
    footer_bytes,
    open_features,
    pack,
    record_type,
)
from misgnet_runtime.jobs.series.options import feature_settings
from misgnet_runtime.log import EventLog
from misgnet_runtime.raster.blending import Layout, lay_out
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.reader import Raster, neutralised
from misgnet_runtime.raster.unreadable import Tally, UnreadableBlock
from misgnet_runtime.storage.atomic import publish, refuse_existing, resumable_errors

_RAW = "features.raw"
_AT_ONCE = 32 << 20  # bytes buffered before they are written


@dataclass(frozen=True)
class SplitEngine:
    """An open split engine of a bundle."""

    bundle: Bundle
    detector: SplitDetector
    entry: EngineEntry
    reason: str  # why this engine was chosen

    @property
    def device(self) -> str:
        return self.detector.encoder.device

    @property
    def streams(self) -> int:
        """Batches in flight at once."""
        return self.detector.encoder.streams


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoding:
    """One date to encode."""

    engine: SplitEngine
    date: Date
    grid: Grid  # the date's own grid, or that of the series' first date
    first: bool  # whether it is the first date of the series
    aligned: bool  # whether it was warped onto the first date's grid
    options: SceneOptions

    @property
    def name(self) -> str:
        """Role of the date in a pair: before or after."""
        return "before" if self.first else "after"

    def tally(self, blocks: Iterable[UnreadableBlock | Block]) -> Tally:
        """Returns a counter of unreadable blocks, starting with ``blocks``.

        It raises UnreadableError above the options' limit.
        """
        found = [(self.name, *block[-4:]) for block in blocks]
        return Tally({self.name: self.date.blocks}, self.options.max_unreadable, found)

    @property
    def batch(self) -> int:
        detector = self.engine.detector
        return self.options.batch_of(self.engine.entry, detector.interface, detector.batch)

    @property
    def layout(self) -> Layout:
        tile, grid = self.engine.detector.interface.tile, self.grid
        overlap = self.options.overlap_of(self.engine.bundle.manifest)
        return lay_out(grid.height, grid.width, tile, overlap, grid.anchor)

    @property
    def record(self) -> np.dtype[np.void]:
        return record_type(self.engine.detector.features, self.engine.detector.interface.tile)

    def footer(self) -> Footer:
        """Returns the footer of a file of these features, with no unreadable blocks and checksums yet."""
        layout, detector = self.layout, self.engine.detector
        settings = {
            "the bundle": self.engine.bundle.digest(),
            "the engine": f"{self.engine.entry.name} on {self.engine.device}",
            "the raster": str(self.date.identity),
            "the scaling": str(self.date.scaling),
            "the grid": self.grid.identity(),
            "--align": str(self.aligned),
            **feature_settings(self.options, overlap=layout.rows.overlap),
        }
        return Footer(
            format=FORMAT, settings=settings, tile=detector.interface.tile, rows=list(layout.rows.starts),
            columns=list(layout.columns.starts), features=detector.features, holes=[], crc32=[],
        )  # fmt: skip


@contextmanager
def open_split_engine(bundle: Bundle, options: SceneOptions, opener: SplitOpener) -> Iterator[SplitEngine]:
    """Opens a split engine of a bundle; raises as :func:`misgnet_runtime.inference.split_detector.choose_split`."""
    opening = opener(bundle, options.engine, options.execution, optimise_for=options.optimise_for)
    with opening as (detector, entry, reason):
        yield SplitEngine(bundle, detector, entry, reason)


def inspect_encoding(engine: SplitEngine, raster: Raster, options: SceneOptions, grid: Grid | None = None) -> Encoding:
    """Inspects a raster that is open on its own grid as the first date, or on ``grid`` as a later date.

    Raises as :func:`find_scaling`; also UnreadableError if more of it is unreadable than ``options`` allow.
    """
    first = grid is None
    check_readable(raster, options.max_unreadable)
    return Encoding(
        engine=engine, date=inspect_date(raster, options.dates[0 if first else 1]),
        grid=grid or Grid.of(raster.dataset), first=first, aligned=raster.source is not None, options=options,
    )  # fmt: skip


def make_features(
    encoding: Encoding, raster: Raster, output: Path, *, log: EventLog, progress: Progress | None = None
) -> tuple[FeatureFile, int]:
    """Encodes the date, open as ``raster``, into ``output``; also returns the tiles finished by an interrupted run.

    ``log`` receives the size of the file to be written.

    Raises:
        UsageError: ``output`` exists, or the saved progress belongs to another run.
        GateFailed: A feature does not fit float16.
        InputError: The disk has no room, or a write fails.
    """
    options, footer = encoding.options, encoding.footer()
    raw = _raw(encoding, footer)
    if was_renamed(output):
        discard_progress(output)
        if (found := open_features(output)).misfit(footer) is None:
            return found, raw.count
    size = f"{plural(raw.count, 'tile')}, {raw.count * raw.size / 2**20:,.1f} MiB"
    log.info(f"features of {encoding.date.origin.name}: {size}")
    settings = {**footer.settings, "--batch": str(encoding.batch), "--streams": str(encoding.engine.streams)}
    with open_journal(output, raw, settings, restart=options.restart) as journal:
        if not journal.publishing:
            refuse_existing(output, options.force)
        resumed = journal.finished
        tally = encoding.tally(journal.unreadable)
        _encode_tiles(encoding, raster, journal, tally, progress)
        encoding.date.check_unchanged()
        _publish(encoding, journal, footer, output)
    for warning in tally.warnings():
        log.warning(warning)
    discard_progress(output)
    return open_features(output), resumed


def _raw(encoding: Encoding, footer: Footer) -> Raw:
    grid, tiles = encoding.grid, len(footer.rows) * len(footer.columns)
    description = f"the scene has {grid.width:,} x {grid.height:,} px, and a file of its features"
    return Raw(_RAW, tiles, encoding.record.itemsize, description)


def _encode_tiles(
    encoding: Encoding, raster: Raster, journal: Journal, tally: Tally, progress: Progress | None
) -> None:
    encode = encoding.engine.detector.encode
    finished = journal.finished
    writer = _Writer(encoding, journal, progress)

    def work(item: tuple[Reading, Image]) -> tuple[Reading, list[NDArray[np.float32]]]:
        reading, images = item
        return reading, encode(images) if reading.tiles else []

    run_pipeline(lambda: _read(encoding, raster, tally, finished), work, writer.take, encoding.engine.streams)


def _read(
    encoding: Encoding, raster: Raster, tally: Tally, finished: int
) -> Generator[tuple[Reading, Image], None, None]:
    """Yields whole strips that are not on disk yet: an engine's output may depend on the other tiles in a batch."""
    with raster.in_thread():
        for strip in strips(encoding.layout, encoding.batch, finished // len(encoding.layout.columns.starts)):
            if strip.numbers.stop > finished:
                image, valid, found = raster.image(encoding.date.scaling, strip.rows, strip.columns)
                unreadable = frozenset[UnreadableBlock]((encoding.name, *block[1:]) for block in found)
                tally.add(unreadable)
                reading = Reading(strip, valid, unreadable)
                yield reading, strip.stack(neutralised(image, valid, raster.pixels.neutral), reading.tiles)


class _Writer:
    """Writes the records of encoded strips to the journal, one row of tiles at a time unless it is too large."""

    def __init__(self, encoding: Encoding, journal: Journal, progress: Progress | None) -> None:
        self._record, self._journal, self._progress = encoding.record, journal, progress
        self._first = journal.finished  # index of the first tile to write
        self._waiting: list[NDArray[Any]] = []
        self._recorded = set(journal.unreadable)
        self._unreadable: set[UnreadableBlock] = set()

    def take(self, encoded: tuple[Reading, list[NDArray[np.float32]]]) -> None:
        reading, values = encoded
        strip, records = reading.strip, self._records(reading, values)
        skipped = max(0, self._first - strip.numbers.start)  # tiles of this strip that are on disk already
        self._waiting += [records[index : index + 1] for index in range(skipped, len(records))]
        self._unreadable |= reading.unreadable
        if strip.last or len(self._waiting) * self._record.itemsize >= _AT_ONCE:
            self._journal.add(self._waiting, tuple(sorted(self._unreadable - self._recorded)))
            self._recorded |= self._unreadable
            self._waiting = []
        if self._progress and strip.last:
            self._progress(strip.row + 1, len(strip.layout.rows.starts))

    def _records(self, reading: Reading, values: list[NDArray[np.float32]]) -> NDArray[Any]:
        """Returns a record for each tile of the strip; all zeros for a tile without data."""
        strip, tile = reading.strip, reading.strip.layout.rows.tile
        records = np.zeros(len(strip.tiles), self._record)
        masks = np.zeros((len(reading.tiles), tile, tile), np.bool_)
        for mask, column in zip(masks, reading.tiles, strict=True):
            part = reading.valid[:, strip.part(column)]
            mask[: part.shape[0], : part.shape[1]] = part
        if reading.tiles:
            records[[column - strip.tiles.start for column in reading.tiles]] = pack(self._record, values, masks)
        return records


def _publish(encoding: Encoding, journal: Journal, footer: Footer, output: Path) -> None:
    """Appends the footer to the raw file and renames it to ``output``."""
    known = encoding.date.blocks.blocks(encoding.name)
    unreadable = sorted({block[1:] for block in (*journal.unreadable, *known)})
    checksums = [band.crc32 for band in journal.bands]
    complete = msgspec.structs.replace(footer, holes=unreadable, crc32=checksums)
    with resumable_errors(output):
        journal.complete(footer_bytes(complete))
        journal.publish()
        publish(journal.path, output)
