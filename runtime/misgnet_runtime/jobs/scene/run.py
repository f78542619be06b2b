"""One pair's run, whatever computes its map: what is noted, written and told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from misgnet_runtime.bundle.manifest import EngineEntry, Interface
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import InputError, UnreadableError
from misgnet_runtime.formatting import changed_words, plural
from misgnet_runtime.jobs.journal import open_journal, raw_map
from misgnet_runtime.jobs.scene.infer import MapTask, Work
from misgnet_runtime.jobs.scene.inputs import Inputs
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.log import EventLog
from misgnet_runtime.raster.blending import Layout, lay_out
from misgnet_runtime.raster.geotiff import read_tags
from misgnet_runtime.raster.polygons import VectorOptions, write_polygons
from misgnet_runtime.raster.quicklook import write_quicklook
from misgnet_runtime.raster.reader import Pair
from misgnet_runtime.raster.unreadable import Tally
from misgnet_runtime.raster.writer import (
    Counts,
    MapWriter,
    Probabilities,
    is_mask,
    publish_all,
    staged,
    write_png,
)
from misgnet_runtime.storage.atomic import refuse_existing, resumable_errors

INTERRUPTED = "what is finished is kept; the same command goes on from there"
_UNREADABLE = "MISGNET_UNREADABLE"  # tags: percent of each date's pixels


@dataclass(frozen=True, kw_only=True)
class SceneReport:
    """What was written. Shares are 0 to 1: of changed pixels among the valid ones (None without any), of pixels without
    data, of valid ones, and of either date's pixels that lie in unreadable blocks.

    ``unread``: unreadable blocks of both dates, and their pixels; ``resumed``: rows that were there already.
    ``tiles``: what the engine was given in this run; ``seconds``: from the first pixel read to the last row written.
    """

    height: int
    width: int
    changed_share: float | None
    nodata_share: float
    unread: tuple[int, int]
    polygons: int | None
    resumed: int
    tiles: int
    seconds: float
    engine: str
    reason: str
    valid_share: float
    unreadable_share_before: float
    unreadable_share_after: float

    def lines(self, output: Path) -> list[str]:
        """For a person."""
        polygons = "" if self.polygons is None else f", {plural(self.polygons, 'polygon')}"
        found = [
            f"{output}: {self.width} x {self.height} px, "
            f"{changed_words(self.changed_share, self.valid_share)}{polygons}, engine {self.engine} ({self.reason})"
        ]
        if self.tiles:
            speed = self.tiles / self.seconds
            found.append(f"{plural(self.tiles, 'tile')} in {self.seconds:.1f} s, {speed:.1f} tiles/s")
        if self.resumed:
            found.append(f"gone on from row {self.resumed} of an ended run")
        return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that one pair's map depends on. ``outputs``: the change raster, then the products in the options' order.

    ``device``: what the engine runs on, ``streams`` batches at once; ``tags``: more, for the outputs; ``features``:
    digests of the stored ones that are compared; ``tuned_batch``: tiles at once, where no other number was asked for.
    """

    bundle: Bundle
    inputs: Inputs
    options: SceneOptions
    outputs: list[Path]
    interface: Interface
    entry: EngineEntry
    device: str
    streams: int
    reason: str
    tags: dict[str, str] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)
    tuned_batch: int | None = None

    @property
    def overlap(self) -> int:
        return self.options.overlap_of(self.interface.tile)

    @property
    def layout(self) -> Layout:
        grid = self.inputs.grid
        return lay_out(grid.height, grid.width, self.interface.tile, self.overlap, grid.anchor)

    @property
    def batch(self) -> int:
        return self.options.batch_of(self.entry, self.interface, self.tuned_batch)

    def settings(self) -> dict[str, str]:
        """What the map and its products depend on, by the words a user knows it by."""
        before, after = self.inputs.before, self.inputs.after
        return {
            "the bundle": self.bundle.digest(),
            "the engine": f"{self.entry.name} on {self.device}",
            "the before raster": before.sha256,
            "the after raster": after.sha256,
            "the scaling of before": str(before.scaling),
            "the scaling of after": str(after.scaling),
            "the grid": self.inputs.grid.identity(),
            **self.options.settings(overlap=self.overlap, batch=self.batch, streams=self.streams),
            **({"the features": " and ".join(self.features)} if self.features else {}),
        }


def run_pair(
    run: Run, pair: Pair, compute: Callable[[MapTask], Work], log: EventLog, progress: Progress | None = None
) -> SceneReport:
    """Compute what the journal lacks by ``compute``, and write all outputs; what was noted stays for the caller.

    ``pair``: both dates, open. Raises UsageError where an output exists, or what was begun is another run;
    UnreadableError, and then nothing is published, where more of a date is unreadable than the options allow; else as
    ``compute``.
    """
    grid, settings = run.inputs.grid, run.settings()
    raw = raw_map(grid.height, grid.width)
    with open_journal(run.outputs[0], raw, settings, restart=run.options.restart) as journal:
        if not journal.publishing:
            refuse_outputs(run.outputs, run.options.force)
        resumed = journal.finished
        tally = run.inputs.tally(run.options.max_unreadable, journal.holes)
        task = MapTask(
            pair=pair, scalings=run.inputs.scalings, layout=run.layout, batch=run.batch, streams=run.streams,
            tally=tally, journal=journal, progress=progress,
        )  # fmt: skip
        work = compute(task)
        made = _publish(run, task, settings)
        for warning in tally.warnings():
            log.warning(warning)
        report = _report(run, tally, work, made, resumed)
        if report.changed_share is None:
            log.warning(f"{run.outputs[0]} has no valid pixels: nowhere do both dates have data")
        return report


def refuse_outputs(outputs: list[Path], force: bool) -> None:
    """UsageError where one of ``outputs`` exists and ``force`` is off."""
    for path in outputs:
        refuse_existing(path, force)


def refuse_unreadable(change: Path, limit: float) -> None:
    """UnreadableError where a finished map says that more of a date was unreadable than ``limit`` percent."""
    tags = read_tags(change)
    for date in ("before", "after"):
        try:
            percent = float(tags.get(f"{_UNREADABLE}_{date.upper()}", 0))
        except ValueError:
            raise InputError(f"the tags of {change} are damaged; replace it with --force --restart") from None
        if percent > limit:
            raise UnreadableError(
                f"{change} was made with {percent:g} % of the {date} raster unreadable, and {limit:g} % are allowed; "
                f"fetch the raster again, or allow them with --max-unreadable {percent:g}"
            )


@dataclass(frozen=True)
class _Made:
    """What was published: pixels of the change raster, and polygons, where they were asked for."""

    counts: Counts
    polygons: int | None


def _publish(run: Run, task: MapTask, settings: dict[str, str]) -> _Made:
    """Write all outputs, and give them their names when all are complete."""
    options, inputs, threshold = run.options, run.inputs, run.bundle.manifest.threshold
    probabilities = Probabilities(task.journal.path, inputs.grid.height, inputs.grid.width)
    writer = MapWriter(probabilities, inputs.grid, threshold, _tags(run, settings, task.tally), options.cog)
    with staged(run.outputs) as places:
        by_name = dict(zip(options.products(), places[1:], strict=True))
        change = places[0].with_name("change.tif") if is_mask(places[0]) else places[0]
        counts, polygons = writer.change(change), None
        if change != places[0]:
            write_png(change, places[0])
        if place := by_name.get("probability"):
            writer.probability(place)
        if place := by_name.get("vector"):
            smallest = VectorOptions(options.min_area, options.simplify)
            polygons = write_polygons(place, change, probabilities, inputs.grid, smallest)
        if place := by_name.get("quicklook"):
            with resumable_errors(place):
                write_quicklook(place, task.pair, inputs.scalings, change)
        for date in (inputs.before, inputs.after):
            date.check_unchanged()
        task.journal.publish()
        publish_all(places, run.outputs)
    return _Made(counts, polygons)


def _tags(run: Run, settings: dict[str, str], tally: Tally) -> dict[str, str]:
    """What was run on what, for the outputs; nothing of this moment, so that equal runs have equal bytes."""
    manifest = run.bundle.manifest
    return {
        "MISGNET_BUNDLE_VERSION": str(manifest.bundle_version),
        "MISGNET_BUNDLE_SHA256": settings["the bundle"],
        "MISGNET_WEIGHTS_SHA256": manifest.source_weights_sha256,
        "MISGNET_ENGINE": settings["the engine"],
        "MISGNET_THRESHOLD": f"{manifest.threshold:g}",
        "MISGNET_OVERLAP": settings["--overlap"],
        "MISGNET_ALIGNED": settings["--align"],
        "MISGNET_BEFORE_SHA256": settings["the before raster"],
        "MISGNET_BEFORE_SCALING": settings["the scaling of before"],
        "MISGNET_AFTER_SHA256": settings["the after raster"],
        "MISGNET_AFTER_SCALING": settings["the scaling of after"],
        **{f"{_UNREADABLE}_{date.upper()}": f"{100 * tally.share(date):.6g}" for date in ("before", "after")},
        **run.tags,
    }


def _report(run: Run, tally: Tally, work: Work, made: _Made, resumed: int) -> SceneReport:
    grid, counts = run.inputs.grid, made.counts
    pixels = grid.height * grid.width
    valid = pixels - counts.nodata
    return SceneReport(
        height=grid.height, width=grid.width, changed_share=counts.changed / valid if valid else None,
        nodata_share=counts.nodata / pixels, unread=tally.unread, polygons=made.polygons, resumed=resumed,
        tiles=work.tiles, seconds=work.seconds, engine=run.entry.name, reason=run.reason, valid_share=valid / pixels,
        unreadable_share_before=tally.share("before"), unreadable_share_after=tally.share("after"),
    )  # fmt: skip
