"""Two folders of images: the mask of every pair of equal names; tiles of several images make one batch."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from misgnet_runtime.bundle import read_bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.choice import Opened, open_detector
from misgnet_runtime.detector import Probability
from misgnet_runtime.errors import UsageError
from misgnet_runtime.folder_record import Record, Stamp, Written, open_record, stamp_of
from misgnet_runtime.images import Mask, RgbImage, read_pair
from misgnet_runtime.scenes.options import SceneOptions
from misgnet_runtime.scenes.pipeline import run_pipeline
from misgnet_runtime.scenes.run import INTERRUPTED
from misgnet_runtime.tiles import Source, find_pairs
from misgnet_runtime.tiling import Cell, cover, cut
from misgnet_runtime.words import changed_words


@dataclass(frozen=True)
class FolderReport:
    """What was written: masks, of them those of an ended run, their share of changed pixels (0 to 1), and how fast.

    ``pairs_per_second``: of this run, from the first file that is read to the last mask; None without any.
    """

    pairs: int
    resumed: int
    changed_share: float
    pairs_per_second: float | None
    engine: str
    reason: str
    valid_share: float = 1.0

    def line(self, output: Path) -> str:
        """For a person."""
        resumed = f" ({self.resumed} of an ended run)" if self.resumed else ""
        speed = "" if self.pairs_per_second is None else f"{self.pairs_per_second:.1f} pairs/s, "
        return (
            f"{output}: {self.pairs} pairs{resumed}, {changed_words(self.changed_share, self.valid_share)}, "
            f"{speed}engine {self.engine} ({self.reason})"
        )


def predict_folders(
    bundle_path: Path,
    before: Path,
    after: Path,
    output: Path,
    *,
    engine: str = "auto",
    batch: int | None = None,
    streams: int | None = None,
    threads: int | None = None,
    tuned: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> FolderReport:
    """Write the masks of two folders' pairs as ``output``/NAME.png, of 0 and 255, each whole when it appears.

    Images may be of any size; each pair is in memory as a whole. A run that ended is gone on with by the same call;
    pairs whose files have changed since are done again. ``tuned``: what of ``batch``, ``streams`` and ``threads`` is
    not given is what was tuned here. ``progress`` is told of pairs. Raises InputError that names
    the file, UsageError where a mask exists; GateFailed where the engine answers NaN or Inf. What is finished stays.
    """
    options = SceneOptions(batch=batch, streams=streams, threads=threads, tuned=tuned)
    options.check_numbers()
    if output.resolve() in (before.resolve(), after.resolve()):
        raise UsageError(f"output {output} is a folder of images that are read; choose another -o")
    sources = find_pairs(before, after)
    bundle = read_bundle(bundle_path)
    with open_detector(bundle, engine, streams, threads, batch, options.goal) as opened:
        detector, entry, _ = opened
        settings = {
            "the bundle": bundle.digest(),
            "the engine": f"{entry.name} on {detector.engine.device}",
        }
        try:
            with open_record(Path(os.path.realpath(output)), settings, sources, force) as record:
                return _run(opened, bundle.manifest.threshold, sources, record, options, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(INTERRUPTED) from None


def _run(
    opened: Opened,
    threshold: float,
    sources: list[Source],
    record: Record,
    options: SceneOptions,
    progress: Progress | None,
) -> FolderReport:
    detector, entry, reason = opened
    todo = [source for source in sources if not _is_written(source, record)]
    writer = _Writer(threshold, record, len(sources) - len(todo), len(sources), progress)
    tile, size = detector.interface.tile, options.batch_of(entry, detector.interface, detector.batch)
    start = time.perf_counter()
    run_pipeline(
        lambda: _batches(todo, tile, size),
        lambda tiles: (tiles, detector.sound_probability(tiles.before, tiles.after)),
        writer.take,
        detector.engine.streams,
    )
    speed = len(todo) / (time.perf_counter() - start) if todo else None
    masks = [record.written[source.name] for source in sources]
    changed = sum(mask.changed for mask in masks) / sum(mask.pixels for mask in masks)
    return FolderReport(len(sources), len(sources) - len(todo), changed, speed, entry.name, reason)


def _is_written(source: Source, record: Record) -> bool:
    mask = record.written.get(source.name)
    return mask is not None and mask.stamp == stamp_of(source) and (record.output / f"{source.name}.png").exists()


@dataclass(frozen=True)
class _Pair:
    """A pair that is being answered: its mask, bool (H, W), and the state of its files before they were read."""

    name: str
    stamp: Stamp
    mask: Mask


@dataclass(frozen=True)
class _Tile:
    """A tile of a pair, uint8 (T, T, 3) of both dates; ``last``: the pair has no more."""

    pair: _Pair
    cell: Cell
    last: bool
    before: RgbImage
    after: RgbImage


@dataclass(frozen=True)
class _Batch:
    """Tiles of one pair or several, uint8 (B, T, T, 3) of both dates."""

    tiles: list[_Tile]
    before: RgbImage
    after: RgbImage


def _batches(sources: Sequence[Source], tile: int, size: int) -> Generator[_Batch, None, None]:
    tiles = (found for source in sources for found in _tiles(source, tile))
    while part := list(islice(tiles, size)):
        yield _Batch(part, np.stack([t.before for t in part]), np.stack([t.after for t in part]))


def _tiles(source: Source, tile: int) -> Iterator[_Tile]:
    stamp = stamp_of(source)
    before, after = read_pair(source.before, source.after)
    height, width = before.shape[:2]
    pair, cells = _Pair(source.name, stamp, np.empty((height, width), np.bool_)), cover(height, width, tile)
    for cell in cells:
        yield _Tile(pair, cell, cell is cells[-1], cut(before, cell), cut(after, cell))


class _Writer:
    """Puts answers together, and masks on the disk as they are finished."""

    def __init__(self, threshold: float, record: Record, done: int, total: int, progress: Progress | None) -> None:
        self._threshold, self._record, self._progress = threshold, record, progress
        self._done, self._total = done, total

    def take(self, answered: tuple[_Batch, Probability]) -> None:
        batch, answer = answered
        for tile, changed in zip(batch.tiles, answer > self._threshold, strict=True):
            tile.pair.mask[tile.cell.owned_in_image()] = changed[tile.cell.owned_in_tile()]
        finished = [tile.pair for tile in batch.tiles if tile.last]
        if finished:
            self._record.write([(_about(pair), pair.mask) for pair in finished])
        self._done += len(finished)
        if self._progress:
            self._progress(self._done, self._total)


def _about(pair: _Pair) -> Written:
    return Written(pair.name, pair.stamp, pair.mask.size, int(pair.mask.sum()))
