"""Two folders: of every pair of equal names the mask, or of GeoTIFFs the change raster.

Tiles of several images make one batch; GeoTIFFs are run one after the other, as scenes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.callables import Mask, Progress, RgbImage
from misgnet_runtime.errors import UsageError
from misgnet_runtime.formatting import format_change
from misgnet_runtime.inference.detector import Probability
from misgnet_runtime.inference.selection import Opened, open_detector
from misgnet_runtime.jobs.folder_record import Record, Stamp, Written, open_record, progress_folder, stamp_of
from misgnet_runtime.jobs.image import are_rasters, warn_of_images
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.pipeline import run_pipeline
from misgnet_runtime.jobs.scene.predict import predict_opened
from misgnet_runtime.jobs.scene.run import INTERRUPTED
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.options import settings
from misgnet_runtime.raster.dataset import Source, find_pairs
from misgnet_runtime.raster.geotiff import load_rasterio
from misgnet_runtime.raster.images import read_pair
from misgnet_runtime.raster.tiling import Cell, cover, cut


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What was written: masks, of them those of an interrupted run, their share of changed pixels (0 to 1; None where
    no pixel is valid), and how fast.

    ``pairs_per_second``: of this run, from the first file that is read to the last mask; None without any.
    """

    pairs: int
    resumed: int
    changed_share: float | None
    pairs_per_second: float | None
    engine: str
    reason: str
    valid_share: float = 1.0

    def line(self, output: Path) -> str:
        """For a person."""
        resumed = f" ({self.resumed} of an ended run)" if self.resumed else ""
        speed = "" if self.pairs_per_second is None else f"{self.pairs_per_second:.1f} pairs/s, "
        return (
            f"{output}: {self.pairs} pairs{resumed}, {format_change(self.changed_share, self.valid_share)}, "
            f"{speed}engine {self.engine} ({self.reason})"
        )


def predict_folders(
    bundle_path: Path,
    before: Path,
    after: Path,
    output: Path,
    options: SceneOptions | None = None,
    *,
    log: EventLog | None = None,
    progress: Progress | None = None,
) -> FolderReport:
    """Write the masks of two folders' pairs as ``output``/NAME.png, of 0 and 255, each whole when it appears.

    Pairs of GeoTIFFs become change rasters, ``output``/NAME.tif, as ``options`` say.
    Images may be of any size; each pair is in memory as a whole. A run that ended is gone on with by the same call;
    pairs whose files have changed since are done again. ``progress`` counts pairs. Raises InputError that names the
    file, UsageError where a mask exists; GateFailed where the engine answers NaN or Inf. What is finished stays.
    """
    options, log = options or SceneOptions(), log or current()
    options.check_values()
    if output.resolve() in (before.resolve(), after.resolve()):
        raise UsageError(f"output {output} is a folder of images that are read; choose another -o")
    sources = find_pairs(before, after)
    scenes = {source.name for source in sources if are_rasters(source.before, source.after)}
    outputs = {source.name: f"{source.name}{'.tif' if source.name in scenes else '.png'}" for source in sources}
    _check_options(output, options, scenes)
    bundle = read_bundle(bundle_path)
    with open_detector(bundle, options.engine, options.execution, optimise_for=options.optimise_for) as opened:
        detector, entry, _ = opened
        settings = {
            "the bundle": bundle.digest(),
            "the engine": f"{entry.name} on {detector.engine.device}",
            **({"the options of scenes": _shown(options)} if scenes else {}),
        }
        try:
            with open_record(Path(os.path.realpath(output)), settings, outputs, options.force) as record:
                run = _Run(bundle=bundle, opened=opened, outputs=outputs, record=record, options=options, log=log)
                return run.process(sources, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(INTERRUPTED) from None


_PLAIN = ("execution", "engine", "force", "tuned", "max_unreadable")
_NOT_SHOWN = ("align", "overlap", "cog", "batch", "min_area", "simplify")  # shown above, or of no folder


def _shown(options: SceneOptions) -> str:
    """What maps depend on, beside the engine and its batches."""
    before, after = options.dates
    shown = f"before {before} after {after} align {options.align} overlap {options.overlap} cog {options.cog}"
    others = {name: value for name, value in settings(options).items() if name not in _NOT_SHOWN}
    return " ".join((shown, *(f"{name} {value}" for name, value in others.items())))


def _check_options(output: Path, options: SceneOptions, scenes: set[str]) -> None:
    """UsageError for options that two folders cannot have; UnavailableError where GeoTIFFs cannot be read."""
    if options.products() or options.min_area or options.simplify:
        raise UsageError(f"output {output} is a folder; --probability, --vector and --quicklook are for one pair")
    plain = SceneOptions(**{name: getattr(options, name) for name in _PLAIN})
    if not scenes and options != plain:
        raise UsageError(f"output {output} is for plain masks; there are no GeoTIFFs that options for scenes are for")
    if scenes:
        load_rasterio("a scene")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run of two folders: the open engine, and where its outputs are recorded."""

    bundle: Bundle
    opened: Opened
    outputs: Mapping[str, str]  # names, by the pair's name
    record: Record
    options: SceneOptions
    log: EventLog

    def process(self, sources: list[Source], progress: Progress | None) -> FolderReport:
        """Write the outputs that are missing."""
        detector, entry, reason = self.opened
        todo = [source for source in sources if not self._is_written(source)]
        images, scenes = ([s for s in todo if self.outputs[s.name].endswith(kind)] for kind in (".png", ".tif"))
        done = len(sources) - len(todo)
        writer = _Writer(self.bundle.manifest.threshold, self.record, done, len(sources), progress)
        tile, size = detector.interface.tile, self.options.batch_of(entry, detector.interface, detector.batch)
        start = time.perf_counter()
        run_pipeline(
            lambda: _batches(images, tile, size, self.log),
            lambda tiles: (tiles, detector.sound_probability(tiles.before, tiles.after)),
            writer.take,
            detector.engine.streams,
        )
        for source in scenes:
            writer.finish([self._predict_scene(source)])
        speed = len(todo) / (time.perf_counter() - start) if todo else None
        return _report([self.record.written[source.name] for source in sources], done, speed, entry.name, reason)

    def _is_written(self, source: Source) -> bool:
        """Whether the pair's output is there, and of its files as they are."""
        found, name = self.record.written.get(source.name), self.outputs[source.name]
        return bool(
            found and found.file == name and found.stamp == stamp_of(source) and (self.record.output / name).exists()
        )

    def _predict_scene(self, source: Source) -> Written:
        """Write a pair's change raster in the progress folder, resuming what an interrupted run left there."""
        self.log.info(f"{source.name}: {source.before.name} and {source.after.name} are GeoTIFFs")
        stamp, place = stamp_of(source), progress_folder(self.record.output) / f"{source.name}.tif"
        report = predict_opened(
            self.bundle, lambda: nullcontext(self.opened), source.before, source.after, place,
            options=replace(self.options, force=True), log=self.log.bind(pair=source.name),
        )  # fmt: skip
        pixels = report.height * report.width
        nodata = round(pixels * report.nodata_share)
        changed = round((report.changed_share or 0) * (pixels - nodata))
        written = Written(name=source.name, stamp=stamp, pixels=pixels, changed=changed, nodata=nodata, suffix=".tif")
        self.record.note([written])
        return written


def _report(outputs: list[Written], resumed: int, speed: float | None, engine: str, reason: str) -> FolderReport:
    pixels = sum(output.pixels for output in outputs)
    valid = pixels - sum(output.nodata for output in outputs)
    return FolderReport(
        pairs=len(outputs),
        resumed=resumed,
        changed_share=sum(output.changed for output in outputs) / valid if valid else None,
        pairs_per_second=speed,
        engine=engine,
        reason=reason,
        valid_share=valid / max(1, pixels),
    )


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


def _batches(sources: Sequence[Source], tile: int, size: int, log: EventLog) -> Generator[_Batch, None, None]:
    tiles = (found for source in sources for found in _tiles(source, tile, log))
    while part := list(islice(tiles, size)):
        yield _Batch(part, np.stack([t.before for t in part]), np.stack([t.after for t in part]))


def _tiles(source: Source, tile: int, log: EventLog) -> Iterator[_Tile]:
    stamp = stamp_of(source)
    before, after = read_pair(source.before, source.after)
    warn_of_images(source.before, source.after, log)
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
        self.finish(finished)

    def finish(self, pairs: Sequence[object]) -> None:
        """Count pairs whose outputs are written."""
        self._done += len(pairs)
        if self._progress:
            self._progress(self._done, self._total)


def _about(pair: _Pair) -> Written:
    return Written(name=pair.name, stamp=pair.stamp, pixels=pair.mask.size, changed=int(pair.mask.sum()))
