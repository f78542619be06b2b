"""Predicts all pairs of two folders with equal file names: masks of images, change rasters of GeoTIFFs.

Tiles of several images share a batch. GeoTIFFs are processed one after the other, as scenes.
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
from misgnet_runtime.bundle.results import threshold_note
from misgnet_runtime.callables import Image, Progress
from misgnet_runtime.errors import UsageError
from misgnet_runtime.formatting import format_change, plural
from misgnet_runtime.inference.detector import Probability
from misgnet_runtime.inference.selection import DetectorOpener, Opened, open_detector
from misgnet_runtime.jobs.folder_record import Record, Stamp, Written, open_record, progress_folder, stamp_of
from misgnet_runtime.jobs.image import are_rasters, warn_of_images
from misgnet_runtime.jobs.recorded_run import common_settings, date_tags, other_run, overlap_setting, settings_tag
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.pipeline import run_pipeline
from misgnet_runtime.jobs.scene.predict import predict_opened
from misgnet_runtime.jobs.scene.run import INTERRUPTED
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.options import settings
from misgnet_runtime.raster.area.area_file import read_area
from misgnet_runtime.raster.blending import Layout, Place, RowBlender, lay_out
from misgnet_runtime.raster.dataset import Source, find_pairs
from misgnet_runtime.raster.geotiff import load_rasterio
from misgnet_runtime.raster.images import image_size, read_pair
from misgnet_runtime.raster.tiling import Span
from misgnet_runtime.storage.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """Report of the outputs of two folders."""

    pairs: int  # outputs of this run and of the interrupted runs that it resumes
    resumed: int  # of these, outputs written by an interrupted run
    changed_share: float | None  # 0 to 1, of the valid pixels; None if no pixel is valid
    pairs_per_second: float | None  # of this run, from the first file read to the last output; None if none was written
    engine: str
    reason: str  # why this engine was chosen
    valid_share: float = 1.0  # 0 to 1
    skipped: int = 0  # outputs of other runs that were left as they are

    def line(self, output: Path) -> str:
        """Returns the report as one line of text."""
        resumed = f" ({self.resumed} from an interrupted run)" if self.resumed else ""
        skipped = f", {self.skipped} existing skipped" if self.skipped else ""
        speed = "" if self.pairs_per_second is None else f"{self.pairs_per_second:.1f} pairs/s, "
        change = format_change(self.changed_share, self.valid_share)
        return (
            f"{output}: {plural(self.pairs, 'pair')}{resumed}{skipped}, {change}, {speed}"
            f"engine {self.engine} ({self.reason})"
        )


def predict_folders(
    bundle_path: Path,
    before: Path,
    after: Path,
    output: Path,
    options: SceneOptions | None = None,
    *,
    skip_existing: bool = False,
    log: EventLog | None = None,
    progress: Progress | None = None,
    opener: DetectorOpener = open_detector,
) -> FolderReport:
    """Writes the masks of two folders' pairs as ``output``/NAME.png (0 and 255), each atomically.

    Pairs of GeoTIFFs become change rasters, ``output``/NAME.tif, according to ``options``. Images may have any size;
    each pair is held in memory completely. The same call resumes an interrupted run, and processes pairs again whose
    files have changed since. With ``skip_existing``, outputs of other runs stay as they are; a warning names those that
    were written by a run that differs from this one. ``progress`` counts pairs; ``opener`` opens the engine.

    Raises:
        InputError: A file cannot be read; the message names it.
        UsageError: An output exists.
        GateFailed: The engine's output has NaN or Inf. Outputs written before stay.
    """
    options, log = options or SceneOptions(), log or current()
    options.check_values()
    if skip_existing and options.force:
        raise UsageError("--skip-existing keeps existing outputs, and --force replaces them; choose one")
    if output.resolve() in (before.resolve(), after.resolve()):
        raise UsageError(f"output {output} is one of the input folders; choose another -o")
    bundle = read_bundle(bundle_path)
    sources = find_pairs(before, after, pixels=bundle.manifest.interface.pixels)
    scenes = {source.name for source in sources if are_rasters(source.before, source.after)}
    outputs = {source.name: f"{source.name}{'.tif' if source.name in scenes else '.png'}" for source in sources}
    _check_options(output, options, scenes)
    with opener(bundle, options.engine, options.execution, optimise_for=options.optimise_for) as opened:
        detector, entry, _ = opened
        overlap = options.overlap_of(bundle.manifest)
        common = common_settings(bundle, opened, options)
        shown = _shown(options) if scenes else ""
        settings = {
            **common,
            **({"the options of scenes": shown} if scenes else {}),
            **_overlap_setting(sources, scenes, detector.interface.tile, overlap),
        }
        if note := threshold_note(bundle, entry.name, options.threshold_of(bundle.manifest)):
            log.info(note)
        try:
            folder = Path(os.path.realpath(output))
            with open_record(folder, settings, outputs, options.force, skip_existing=skip_existing) as record:
                run = _Run(
                    bundle=bundle, opened=opened, outputs=outputs, record=record, options=options, overlap=overlap,
                    log=log, common=common, shown=shown,
                )  # fmt: skip
                return run.process(sources, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(INTERRUPTED) from None


_PLAIN = ("execution", "engine", "force", "overlap", "threshold", "tuned", "max_unreadable")
# Shown below, or not allowed for folders.
_NOT_SHOWN = ("threshold", "align", "overlap", "cog", "batch", "min_area", "simplify")


def _overlap_setting(sources: list[Source], scenes: set[str], tile: int, overlap: int) -> dict[str, str]:
    """Returns :func:`overlap_setting` of the largest image of all pairs that are not ``scenes``."""
    sizes = [image_size(source.before, source.pixels) for source in sources if source.name not in scenes]
    return overlap_setting(max(sizes, key=max, default=(0, 0)), tile, overlap)


def _shown(options: SceneOptions) -> str:
    """Returns, as text, the options that maps depend on, except the engine and its batch size."""
    before, after = options.dates
    shown = f"before {before} after {after} align {options.align} overlap {options.overlap} cog {options.cog}"
    others = {name: value for name, value in settings(options).items() if name not in _NOT_SHOWN}
    others |= {"aoi": read_area(options.aoi).sha256} if options.aoi else {}
    return " ".join((shown, *(f"{name} {value}" for name, value in others.items())))


def _check_options(output: Path, options: SceneOptions, scenes: set[str]) -> None:
    """Raises UsageError for options not allowed for folders, UnavailableError if rasterio is missing for GeoTIFFs."""
    if options.products() or options.min_area or options.simplify or options.style:
        raise UsageError(
            f"output {output} is a folder; --probability, --vector, --quicklook, --report and --style (with --min-area "
            "and --simplify) are for one pair"
        )
    plain = SceneOptions(**{name: getattr(options, name) for name in _PLAIN})
    if not scenes and options != plain:
        raise UsageError(
            f"options for GeoTIFFs were given, but the folders hold none; output {output} would be plain masks: remove "
            "these options"
        )
    if scenes:
        load_rasterio("a scene")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run of two folders."""

    bundle: Bundle
    opened: Opened
    outputs: Mapping[str, str]  # file names of the outputs, by the pair's name
    record: Record
    options: SceneOptions
    overlap: int  # pixels that neighbouring tiles of an image share
    log: EventLog
    common: Mapping[str, str]  # settings that all outputs depend on
    shown: str  # the options that maps of GeoTIFFs depend on

    def process(self, sources: list[Source], progress: Progress | None) -> FolderReport:
        """Writes the outputs that are missing."""
        detector, entry, reason = self.opened
        skipped = self._skip(sources)
        sources = [source for source in sources if source.name not in skipped]
        todo = [source for source in sources if not self._is_written(source)]
        images, scenes = ([s for s in todo if self.outputs[s.name].endswith(kind)] for kind in (".png", ".tif"))
        done = len(sources) - len(todo)
        writer = _Writer(self.record, done, len(sources), progress)
        tile, size = detector.interface.tile, self.options.batch_of(entry, detector.interface, detector.batch)
        start = time.perf_counter()
        run_pipeline(
            lambda: _batches(self._tiles(images, tile), size),
            lambda tiles: (tiles, detector.sound_probability(tiles.before, tiles.after)),
            writer.take,
            detector.engine.streams,
        )
        for source in scenes:
            writer.finish([self._predict_scene(source)])
        speed = len(todo) / (time.perf_counter() - start) if todo else None
        report = _report([self.record.written[source.name] for source in sources], done, speed, entry.name, reason)
        return replace(report, skipped=len(skipped))

    def _skip(self, sources: list[Source]) -> frozenset[str]:
        """Returns the names of the pairs to skip; logs a warning for each whose output another run wrote."""
        for source in sources:
            if source.name in self.record.skipped:
                name = self.outputs[source.name]
                if reason := other_run(self.record.output / name, self._settings(source), source):
                    self.log.warning(f"{name} is skipped, but {reason}; remove it to write it again")
        return self.record.skipped

    def _settings(self, source: Source) -> dict[str, str]:
        """Returns the settings that the output of one pair depends on."""
        if self.outputs[source.name].endswith(".tif"):
            return {**self.common, "the options of scenes": self.shown}
        return {**self.common, **_overlap_setting([source], set(), self.opened[0].interface.tile, self.overlap)}

    def _tiles(self, images: Sequence[Source], tile: int) -> Iterator[_Tile]:
        threshold = self.options.threshold_of(self.bundle.manifest)
        for source in images:
            stamp, snapshot = stamp_of(source), Snapshot(source.paths)
            before, after = read_pair(source.before, source.after, source.pixels)
            warn_of_images(source.before, source.after, self.log, source.pixels)
            height, width = before.shape[:2]
            tags = {**settings_tag(self._settings(source)), **date_tags(snapshot, source.before, source.after)}
            pair = _Pair(source.name, stamp, lay_out(height, width, tile, self.overlap), threshold, tags=tags)
            for place in pair.layout.tiles():
                yield _Tile(pair, place, place.cut(before), place.cut(after))

    def _is_written(self, source: Source) -> bool:
        """Returns whether the pair's output exists and was made of its files in their current state."""
        found, name = self.record.written.get(source.name), self.outputs[source.name]
        return bool(
            found and found.file == name and found.stamp == stamp_of(source) and (self.record.output / name).exists()
        )

    def _predict_scene(self, source: Source) -> Written:
        """Writes a pair's change raster in the progress folder, resuming an interrupted run, and records it."""
        self.log.info(f"{source.name}: {source.before.name} and {source.after.name} are GeoTIFFs")
        stamp, path = stamp_of(source), progress_folder(self.record.output) / f"{source.name}.tif"
        report = predict_opened(
            self.bundle, lambda: nullcontext(self.opened), source.before, source.after, path,
            options=replace(self.options, force=True), log=self.log.bind(pair=source.name),
            tags=settings_tag(self._settings(source)),
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


class _Pair:
    """A pair of images whose mask is being computed."""

    def __init__(self, name: str, stamp: Stamp, layout: Layout, threshold: float, *, tags: Mapping[str, str]) -> None:
        self.name = name
        self.tags = tags  # of its mask
        self.stamp = stamp  # state of its files before they were read
        self.layout = layout
        self.mask = np.empty((layout.rows.length, layout.columns.length), np.bool_)
        self._threshold = threshold
        self._blender = RowBlender(layout, self._take)

    def add(self, place: Place, probability: Probability) -> None:
        """Adds the probabilities of a tile; tiles are added in the layout's order."""
        self._blender.add(place, probability)

    def _take(self, rows: Span, probability: Probability) -> None:
        self.mask[rows.start : rows.stop] = probability > self._threshold


@dataclass(frozen=True)
class _Tile:
    """A tile of a pair."""

    pair: _Pair
    place: Place
    before: Image  # (T, T, C), like ``after``
    after: Image


@dataclass(frozen=True)
class _Batch:
    """Tiles of one or more pairs."""

    tiles: list[_Tile]
    before: Image  # (B, T, T, C), like ``after``
    after: Image


def _batches(tiles: Iterator[_Tile], size: int) -> Generator[_Batch, None, None]:
    while part := list(islice(tiles, size)):
        yield _Batch(part, np.stack([t.before for t in part]), np.stack([t.after for t in part]))


class _Writer:
    """Assembles masks from predictions and writes each mask when it is complete."""

    def __init__(self, record: Record, done: int, total: int, progress: Progress | None) -> None:
        self._record, self._progress = record, progress
        self._done, self._total = done, total

    def take(self, predicted: tuple[_Batch, Probability]) -> None:
        batch, probabilities = predicted
        for tile, probability in zip(batch.tiles, probabilities, strict=True):
            tile.pair.add(tile.place, probability)
        finished = [tile.pair for tile in batch.tiles if tile.place.last]
        if finished:
            self._record.write([(_about(pair), pair.mask, pair.tags) for pair in finished])
        self.finish(finished)

    def finish(self, pairs: Sequence[object]) -> None:
        """Counts pairs whose outputs are written."""
        self._done += len(pairs)
        if self._progress:
            self._progress(self._done, self._total)


def _about(pair: _Pair) -> Written:
    return Written(name=pair.name, stamp=pair.stamp, pixels=pair.mask.size, changed=int(pair.mask.sum()))
