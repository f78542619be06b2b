"""One date through the encoder, tile by tile, into a file of features: whole or not at all, and resumable."""

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
from misgnet_runtime.callables import Progress, RgbImage
from misgnet_runtime.inference.split_detector import SplitDetector, choose_split
from misgnet_runtime.jobs.journal import Journal, Raw, discard_progress, open_journal, was_named
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
_AT_ONCE = 32 << 20  # bytes that wait for the disk


@dataclass(frozen=True)
class SplitEngine:
    """A split engine that a series is run with: a bundle, its open detector, which engine that is, and why."""

    bundle: Bundle
    detector: SplitDetector
    entry: EngineEntry
    reason: str

    @property
    def device(self) -> str:
        return self.detector.encoder.device

    @property
    def streams(self) -> int:
        """Batches at once."""
        return self.detector.encoder.streams


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoding:
    """One date to be encoded on ``grid``, its own or that of the series' ``first``."""

    engine: SplitEngine
    date: Date
    grid: Grid
    first: bool
    aligned: bool
    options: SceneOptions

    @property
    def name(self) -> str:
        """Which date of a pair it is."""
        return "before" if self.first else "after"

    def tally(self, blocks: Iterable[UnreadableBlock | Block]) -> Tally:
        """Counts unreadable blocks, beginning with ``blocks``; UnreadableError above what the options allow."""
        found = [(self.name, *block[-4:]) for block in blocks]
        return Tally({self.name: self.date.blocks}, self.options.max_unreadable, found)

    @property
    def batch(self) -> int:
        detector = self.engine.detector
        return self.options.batch_of(self.engine.entry, detector.interface, detector.batch)

    @property
    def layout(self) -> Layout:
        tile, grid = self.engine.detector.interface.tile, self.grid
        return lay_out(grid.height, grid.width, tile, self.options.overlap_of(tile), grid.anchor)

    @property
    def record(self) -> np.dtype[np.void]:
        return record_type(self.engine.detector.features, self.engine.detector.interface.tile)

    def footer(self) -> Footer:
        """What a file of these features says, but for its holes and checksums."""
        layout, detector = self.layout, self.engine.detector
        settings = {
            "the bundle": self.engine.bundle.digest(),
            "the engine": f"{self.engine.entry.name} on {self.engine.device}",
            "the raster": self.date.sha256,
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
def open_split_engine(bundle: Bundle, options: SceneOptions) -> Iterator[SplitEngine]:
    """Raises as :func:`misgnet_runtime.inference.split_detector.choose_split`."""
    opening = choose_split(bundle, options.engine, options.execution, optimise_for=options.optimise_for)
    with opening as (detector, entry, reason):
        yield SplitEngine(bundle, detector, entry, reason)


def inspect_encoding(engine: SplitEngine, raster: Raster, options: SceneOptions, grid: Grid | None = None) -> Encoding:
    """Inspect a raster, open on its own grid as the first date, or on ``grid`` as a later one.

    Raises as :func:`find_scaling`; UnreadableError where more of it is known to be unreadable than ``options`` allow.
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
    """Encode the date, open as ``raster``, into ``output``; also how many tiles were there already, of an ended run.

    ``log`` gets the size that it will have. Raises UsageError where ``output`` exists, or what was begun is another
    run; GateFailed where a feature does not fit float16; InputError where the disk has no room, or refuses.
    """
    options, footer = encoding.options, encoding.footer()
    raw = _raw(encoding, footer)
    if was_named(output):
        discard_progress(output)
        if (found := open_features(output)).misfit(footer) is None:
            return found, raw.count
    log.info(f"features of {encoding.date.path.name}: {raw.count:,} tiles, {raw.count * raw.size / 2**20:,.1f} MiB")
    settings = {**footer.settings, "--batch": str(encoding.batch), "--streams": str(encoding.engine.streams)}
    with open_journal(output, raw, settings, restart=options.restart) as journal:
        if not journal.publishing:
            refuse_existing(output, options.force)
        resumed = journal.finished
        tally = encoding.tally(journal.holes)
        _encode_tiles(encoding, raster, journal, tally, progress)
        encoding.date.check_unchanged()
        _publish(encoding, journal, footer, output)
    for warning in tally.warnings():
        log.warning(warning)
    discard_progress(output)
    return open_features(output), resumed


def _raw(encoding: Encoding, footer: Footer) -> Raw:
    grid, tiles = encoding.grid, len(footer.rows) * len(footer.columns)
    words = f"the scene has {grid.width:,} x {grid.height:,} px, and a file of its features"
    return Raw(_RAW, tiles, encoding.record.itemsize, words)


def _encode_tiles(
    encoding: Encoding, raster: Raster, journal: Journal, tally: Tally, progress: Progress | None
) -> None:
    encode = encoding.engine.detector.encode
    finished = journal.finished
    writer = _Writer(encoding, journal, progress)

    def work(item: tuple[Reading, RgbImage]) -> tuple[Reading, list[NDArray[np.float32]]]:
        reading, images = item
        return reading, encode(images) if reading.tiles else []

    run_pipeline(lambda: _read(encoding, raster, tally, finished), work, writer.take, encoding.engine.streams)


def _read(
    encoding: Encoding, raster: Raster, tally: Tally, finished: int
) -> Generator[tuple[Reading, RgbImage], None, None]:
    """Strips, whole, that are not on the disk yet: an engine's answer may depend on what else is in a batch."""
    with raster.in_thread():
        for strip in strips(encoding.layout, encoding.batch, finished // len(encoding.layout.columns.starts)):
            if strip.numbers.stop > finished:
                image, valid, found = raster.rgb(encoding.date.scaling, strip.rows, strip.columns)
                unreadable = frozenset[UnreadableBlock]((encoding.name, *block[1:]) for block in found)
                tally.add(unreadable)
                reading = Reading(strip, valid, unreadable)
                yield reading, strip.stack(neutralised(image, valid), reading.tiles)


class _Writer:
    """Puts the records of encoded strips on the disk, a row of tiles at once where that is not too much."""

    def __init__(self, encoding: Encoding, journal: Journal, progress: Progress | None) -> None:
        self._record, self._journal, self._progress = encoding.record, journal, progress
        self._begun = journal.finished
        self._waiting: list[NDArray[Any]] = []
        self._told = set(journal.holes)
        self._unreadable: set[UnreadableBlock] = set()

    def take(self, encoded: tuple[Reading, list[NDArray[np.float32]]]) -> None:
        reading, values = encoded
        strip, records = reading.strip, self._records(reading, values)
        there = max(0, self._begun - strip.numbers.start)  # of a strip that was begun before
        self._waiting += [records[index : index + 1] for index in range(there, len(records))]
        self._unreadable |= reading.unreadable
        if strip.last or len(self._waiting) * self._record.itemsize >= _AT_ONCE:
            self._journal.add(self._waiting, tuple(sorted(self._unreadable - self._told)))
            self._told |= self._unreadable
            self._waiting = []
        if self._progress and strip.last:
            self._progress(strip.row + 1, len(strip.layout.rows.starts))

    def _records(self, reading: Reading, values: list[NDArray[np.float32]]) -> NDArray[Any]:
        """A record for each tile of the strip; those without data have zeros."""
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
    """Complete the raw file, and give it its name."""
    known = encoding.date.blocks.blocks(encoding.name)
    holes = sorted({block[1:] for block in (*journal.holes, *known)})
    checksums = [band.crc32 for band in journal.bands]
    complete = msgspec.structs.replace(footer, holes=holes, crc32=checksums)
    with resumable_errors(output):
        journal.complete(footer_bytes(complete))
        journal.publish()
        publish(journal.path, output)
