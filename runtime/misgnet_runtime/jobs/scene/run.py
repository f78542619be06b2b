"""Runs one pair: computes the map, writes its outputs and returns the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from misgnet_runtime.bundle.manifest import EngineEntry, Interface
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.bundle.results import stated_f1, threshold_note
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import InputError, UnreadableError
from misgnet_runtime.formatting import format_change, plural, printable
from misgnet_runtime.jobs.journal import open_journal, raw_map
from misgnet_runtime.jobs.scene.infer import MapTask, Work
from misgnet_runtime.jobs.scene.inputs import Date, Inputs
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.products import FinishedMap, write_products
from misgnet_runtime.jobs.scene.report.content import Facts
from misgnet_runtime.jobs.scene.stac_item import check_described
from misgnet_runtime.log import EventLog
from misgnet_runtime.raster.blending import Layout, lay_out
from misgnet_runtime.raster.geotiff import read_tags
from misgnet_runtime.raster.reader import Pair
from misgnet_runtime.raster.registration import Registration
from misgnet_runtime.raster.unreadable import Tally
from misgnet_runtime.raster.writer import (
    Counts,
    Coverage,
    MapWriter,
    Probabilities,
    is_mask,
    publish_all,
    staged,
    write_png,
)
from misgnet_runtime.storage.atomic import refuse_existing

INTERRUPTED = "finished work is kept; rerun the same command to resume"
_UNREADABLE = "MISGNET_UNREADABLE"  # prefix of the tags that hold each date's percentage of unreadable pixels


@dataclass(frozen=True, kw_only=True)
class SceneReport:
    """Report of a scene that was written. Shares are 0 to 1."""

    height: int  # pixels
    width: int
    changed_share: float | None  # of the valid pixels; None if no pixel is valid
    nodata_share: float
    unread: tuple[int, int]  # unreadable blocks of both dates, and their pixels
    polygons: int | None  # None if not requested
    resumed: int  # rows finished by an interrupted run
    tiles: int  # inferred in this run
    seconds: float  # from the first pixel read to the last row written
    engine: str
    reason: str  # why this engine was chosen
    valid_share: float
    unreadable_share_before: float  # pixels of BEFORE in unreadable blocks
    unreadable_share_after: float
    fetched_bytes: int = 0  # over a network, of both dates
    requests: int = 0
    aoi_valid_share: float | None = None  # of the area's pixels; None: no area was given
    registration: Registration | None = None  # by which AFTER was moved; None: not asked for

    def lines(self, output: Path) -> list[str]:
        """Returns the report as lines of text."""
        polygons = "" if self.polygons is None else f", {plural(self.polygons, 'polygon')}"
        found = [
            f"{output}: {self.width} x {self.height} px, "
            f"{format_change(self.changed_share, self.valid_share)}{polygons}, engine {self.engine} ({self.reason})"
        ]
        if self.tiles:
            speed = self.tiles / self.seconds
            found.append(f"{plural(self.tiles, 'tile')} in {self.seconds:.1f} s, {speed:.1f} tiles/s")
        if self.aoi_valid_share is not None:
            found.append(f"{100 * self.aoi_valid_share:.2f} % of the area's pixels are valid")
        if self.registration:
            found.append(f"AFTER was moved back by {self.registration}")
        if self.resumed:
            found.append(f"resumed at row {self.resumed}")
        if self.requests:
            found.append(f"fetched {self.fetched_bytes / 2**20:,.1f} MiB in {plural(self.requests, 'request')}")
        return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that determines the outputs of one pair."""

    bundle: Bundle
    inputs: Inputs
    options: SceneOptions
    outputs: list[Path]  # the change raster, then the products in the options' order
    interface: Interface
    entry: EngineEntry
    device: str  # on which the engine runs
    streams: int  # batches in flight at once
    reason: str  # why this engine was chosen
    tags: dict[str, str] = field(default_factory=dict)  # additional tags of the outputs
    features: list[str] = field(default_factory=list)  # digests of the stored features that are compared
    tuned_batch: int | None = None  # tiles per inference call unless the options state a number
    name: str | None = None  # the scene's name; None: the name of AFTER, without its ending
    places: dict[str, Path] = field(default_factory=dict)  # by option, where the caller moves outputs; else they stay

    @property
    def overlap(self) -> int:
        return self.options.overlap_of(self.bundle.manifest)

    @property
    def threshold(self) -> float:
        return self.options.threshold_of(self.bundle.manifest)

    @property
    def layout(self) -> Layout:
        grid = self.inputs.grid
        return lay_out(grid.height, grid.width, self.interface.tile, self.overlap, grid.anchor)

    @property
    def batch(self) -> int:
        return self.options.batch_of(self.entry, self.interface, self.tuned_batch)

    def settings(self) -> dict[str, str]:
        """Returns the settings that the outputs depend on; the keys appear in messages."""
        before, after = self.inputs.before, self.inputs.after
        return {
            "the bundle": self.bundle.digest(),
            "the engine": f"{self.entry.name} on {self.device}",
            "the before raster": str(before.identity),
            "the after raster": str(after.identity),
            "the scaling of before": str(before.scaling),
            "the scaling of after": str(after.scaling),
            "the grid": self.inputs.grid.identity(),
            **self.options.settings(overlap=self.overlap, batch=self.batch, streams=self.streams),
            **_ground_settings(self.inputs),
            **({"the features": " and ".join(self.features)} if self.features else {}),
        }


def run_pair(
    run: Run, pair: Pair, compute: Callable[[MapTask], Work], log: EventLog, progress: Progress | None = None
) -> SceneReport:
    """Computes the missing rows with ``compute`` and writes all outputs; the caller discards the journal.

    ``pair``: both dates, open. ``log``: the page shows the warnings that it remembers from before.

    Raises:
        UsageError: An output exists, or the saved progress belongs to another run.
        UnreadableError: More of a date is unreadable than the options allow; nothing is published.
    """
    if run.options.stac_item:
        check_described(run.inputs)
    grid, settings = run.inputs.grid, run.settings()
    log = log.remembering() if log.warnings is None else log
    raw = raw_map(grid.height, grid.width)
    with open_journal(run.outputs[0], raw, settings, restart=run.options.restart) as journal:
        if not journal.publishing:
            refuse_outputs(run.outputs, run.options.force)
        resumed = journal.finished
        tally = run.inputs.tally(run.options.max_unreadable, journal.unreadable)
        task = MapTask(
            pair=pair, scalings=run.inputs.scalings, layout=run.layout, batch=run.batch, streams=run.streams,
            tally=tally, journal=journal, region=run.inputs.ground.region, progress=progress,
        )  # fmt: skip
        if note := threshold_note(run.bundle, run.entry.name, run.threshold):
            log.info(note)
        work = compute(task)
        found = Probabilities(journal.path, grid.height, grid.width).coverage()
        _warn(run, tally, found.share, log)
        published = _publish(run, task, _tags(run, settings, tally, found.share), found, log.warnings or ())
        fetched = [raster.origin.take_fetched() for raster in (pair.before, pair.after)]
        return replace(
            _report(run, tally, work, published, resumed), fetched_bytes=sum(part.size for part in fetched),
            requests=sum(part.requests for part in fetched),
        )  # fmt: skip


def _warn(run: Run, tally: Tally, valid: float, log: EventLog) -> None:
    """Logs what a finished map lacks; ``valid``: its share of pixels with data."""
    output = run.outputs[0].name
    for warning in tally.warnings():
        log.warning(warning)
    if not valid:
        log.warning(f"{output} has no valid pixels: both dates have data at no pixel")
    elif valid < 1 and is_mask(run.outputs[0]):
        log.warning(
            f"{100 * (1 - valid):.2f} % of the pixels are nodata; in {output} they are 0, like unchanged pixels; "
            f"-o {run.outputs[0].stem}.tif keeps them apart"
        )


def refuse_outputs(outputs: list[Path], force: bool) -> None:
    """Raises UsageError if one of ``outputs`` exists and ``force`` is off."""
    for path in outputs:
        refuse_existing(path, force)


def refuse_unreadable(change: Path, limit: float) -> None:
    """Raises UnreadableError if a finished map's tags state more unreadable pixels than ``limit`` percent."""
    tags = read_tags(change)
    for date in ("before", "after"):
        try:
            percent = float(tags.get(f"{_UNREADABLE}_{date.upper()}", 0))
        except ValueError:
            raise InputError(f"the tags of {change} are damaged; replace it with --force --restart") from None
        if percent > limit:
            raise UnreadableError(
                f"{change} was made with {percent:g} % of the {date} raster unreadable, but only {limit:g} % are "
                f"allowed; download the raster again, or accept it with --max-unreadable {percent:g}"
            )


@dataclass(frozen=True)
class _Published:
    counts: Counts  # pixels of the change raster
    facts: Facts  # about the map
    polygons: int | None  # None if not requested


def _publish(run: Run, task: MapTask, tags: dict[str, str], coverage: Coverage, warnings: Sequence[str]) -> _Published:
    """Writes all outputs under temporary names and renames them when all are complete."""
    options, inputs, threshold = run.options, run.inputs, run.threshold
    probabilities = Probabilities(task.journal.path, inputs.grid.height, inputs.grid.width)
    writer = MapWriter(probabilities, inputs.grid, threshold, tags, options.cog)
    with staged(run.outputs) as paths:
        by_name = dict(zip(options.outputs(run.outputs[0]), paths, strict=True))
        change = paths[0].with_name("change.tif") if is_mask(paths[0]) else paths[0]
        counts = writer.change(change)
        if change != paths[0]:
            write_png(change, paths[0], tags)
        if path := by_name.get("probability"):
            writer.probability(path)
        facts = _facts(run, task.tally, tags, counts, warnings)
        places = dict(zip(by_name, run.outputs, strict=True)) | run.places
        found = FinishedMap(
            pair=task.pair, change=change, probabilities=probabilities, coverage=coverage, facts=facts, places=places
        )  # fmt: skip
        polygons = write_products(found, by_name)
        for date in (inputs.before, inputs.after):
            date.check_unchanged()
        task.journal.publish()
        publish_all(paths, run.outputs)
    return _Published(counts, facts, polygons)


def _facts(run: Run, tally: Tally, tags: dict[str, str], counts: Counts, warnings: Sequence[str]) -> Facts:
    pixels = run.inputs.grid.height * run.inputs.grid.width
    valid = pixels - counts.nodata
    return Facts(
        scene=printable(run.name or run.inputs.after.origin.stem), bundle=run.bundle.name.resolve().name,
        tile=run.interface.tile, inputs=run.inputs, options=run.options, tags=tags,
        changed_share=counts.changed / valid if valid else None, valid_share=valid / pixels,
        unreadable=(tally.share("before"), tally.share("after")), warnings=warnings,
    )  # fmt: skip


def _tags(run: Run, settings: dict[str, str], tally: Tally, valid: float) -> dict[str, str]:
    """Returns the outputs' tags; no timestamps, so that equal runs write equal bytes."""
    manifest = run.bundle.manifest
    f1 = stated_f1(run.bundle, run.entry.name, run.threshold)
    return {
        "MISGNET_SOFTWARE": f"misgnet-export {version('misgnet-export')}",
        "MISGNET_BUNDLE_VERSION": str(manifest.bundle_version),
        "MISGNET_BUNDLE_SHA256": settings["the bundle"],
        "MISGNET_WEIGHTS_SHA256": manifest.source_weights_sha256,
        "MISGNET_ENGINE": settings["the engine"],
        "MISGNET_THRESHOLD": f"{run.threshold:g}",
        **({"MISGNET_BUNDLE_F1": f1} if f1 else {}),
        "MISGNET_OVERLAP": settings["--overlap"],
        "MISGNET_ALIGNED": settings["--align"],
        **_date_tags("before", run.inputs.before),
        **_date_tags("after", run.inputs.after),
        **{f"{_UNREADABLE}_{date.upper()}": f"{100 * tally.share(date):.6g}" for date in ("before", "after")},
        "MISGNET_VALID_SHARE": f"{valid:.6g}",
        **_ground_tags(run.inputs),
        **run.tags,
    }


def _ground_settings(inputs: Inputs) -> dict[str, str]:
    area, registration = inputs.ground.area, inputs.registration
    return {
        **({"the area": area.sha256} if area else {}),
        **({"the offset": registration.offset} if registration else {}),
    }


def _ground_tags(inputs: Inputs) -> dict[str, str]:
    area, registration = inputs.ground.area, inputs.registration
    return {
        **({"MISGNET_AOI_SHA256": area.sha256} if area else {}),
        **({"MISGNET_COREGISTERED": str(registration)} if registration else {}),
    }


def _date_tags(name: str, date: Date) -> dict[str, str]:
    prefix = f"MISGNET_{name.upper()}"
    return {
        f"{prefix}_NAME": printable(date.origin.name),
        **({f"{prefix}_DATE": date.acquired.isoformat()} if date.acquired else {}),
        f"{prefix}_{date.identity.tag}": date.identity.value,
        f"{prefix}_SCALING": str(date.scaling),
    }


def _report(run: Run, tally: Tally, work: Work, published: _Published, resumed: int) -> SceneReport:
    grid, facts, nodata = run.inputs.grid, published.facts, published.counts.nodata
    pixels, area = grid.height * grid.width, run.inputs.ground.pixels
    return SceneReport(
        height=grid.height, width=grid.width, changed_share=facts.changed_share, nodata_share=nodata / pixels,
        unread=tally.unread, polygons=published.polygons, resumed=resumed, tiles=work.tiles, seconds=work.seconds,
        engine=run.entry.name, reason=run.reason, valid_share=facts.valid_share,
        unreadable_share_before=facts.unreadable[0], unreadable_share_after=facts.unreadable[1],
        aoi_valid_share=(pixels - nodata) / area if area else None, registration=run.inputs.registration,
    )  # fmt: skip
