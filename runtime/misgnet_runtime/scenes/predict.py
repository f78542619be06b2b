"""A pair of GeoTIFFs to a change raster, polygons and a picture: whole or not at all, and resumable."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from misgnet_runtime.bundle import MANIFEST, Bundle, file_sha256, read_bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.choice import open_detector
from misgnet_runtime.detector import ChangeDetector
from misgnet_runtime.errors import InputError
from misgnet_runtime.manifest import EngineEntry
from misgnet_runtime.outputs import refuse_existing, resumable_errors
from misgnet_runtime.scenes.grids import Grid
from misgnet_runtime.scenes.inference import Task, infer
from misgnet_runtime.scenes.journal import FORMAT, Header, Journal, discard_progress, open_journal, progress_folder
from misgnet_runtime.scenes.options import SceneOptions
from misgnet_runtime.scenes.products import Counts, MapWriter, publish_all, staged
from misgnet_runtime.scenes.quicklook import write_quicklook
from misgnet_runtime.scenes.sampling import find_scaling, residual_shift
from misgnet_runtime.scenes.scaling import Scaling
from misgnet_runtime.scenes.source import open_pair
from misgnet_runtime.scenes.vectors import VectorOptions, load_vector_libraries, write_polygons
from misgnet_runtime.scenes.windows import lay_out

INTERRUPTED = "what is finished is kept; the same command goes on from there"
_SETTINGS = ("align", "batch", "cog", "min_area", "simplify")
_Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SceneReport:
    """What was written. Shares are 0 to 1: of changed pixels among those with data, and of those without data.

    ``unread``: blocks of the inputs that cannot be read, and their pixels; ``resumed``: rows that were there already.
    """

    height: int
    width: int
    changed_share: float
    nodata_share: float
    unread: tuple[int, int]
    polygons: int | None
    resumed: int
    engine: str
    reason: str

    def lines(self, output: Path) -> list[str]:
        """For a person."""
        polygons = "" if self.polygons is None else f", {self.polygons} polygons"
        found = [
            f"{output}: {self.width} x {self.height} px, {100 * self.changed_share:.2f} % changed{polygons}, "
            f"{100 * self.nodata_share:.2f} % without data, engine {self.engine} ({self.reason})"
        ]
        if self.unread[0]:
            found.append(f"warning: {self.unread[0]} blocks ({self.unread[1]} px) could not be read; they have no data")
        if self.resumed:
            found.append(f"gone on from row {self.resumed} of an ended run")
        return found


@dataclass(frozen=True)
class Inputs:
    """Both rasters, looked at: digests, their state on disk, scalings and the grid of the map."""

    paths: tuple[Path, Path]
    sha256: tuple[str, str]
    stamp: _Stamp
    scalings: tuple[Scaling, Scaling]
    grid: Grid
    shift: tuple[float, float] | None


@dataclass(frozen=True)
class Run:
    """All that one call works with. ``outputs``: the change raster, then the products in the options' order."""

    bundle: Bundle
    inputs: Inputs
    options: SceneOptions
    outputs: list[Path]
    detector: ChangeDetector
    entry: EngineEntry
    reason: str

    @property
    def overlap(self) -> int:
        asked = self.options.overlap
        return self.detector.interface.tile // 4 if asked is None else asked


def predict_scene_files(
    bundle_path: Path,
    before: Path,
    after: Path,
    output: Path,
    options: SceneOptions | None = None,
    *,
    tell: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> SceneReport:
    """Write the change between two GeoTIFFs as ``output``, and what ``options`` ask for beside it.

    ``tell`` gets what a user should know before the run: scalings, and a warning. Memory does not grow with the
    scene's height, and with its width by a tile's height of it. An interrupted run is gone on with by the same call.
    Raises UsageError, InputError, UnavailableError or GateFailed; then no output has its name.
    """
    options = options or SceneOptions()
    options.check(output)
    if options.vector:
        load_vector_libraries()
    outputs = [Path(os.path.realpath(path)) for path in (output, *options.products().values())]
    if not progress_folder(outputs[0]).exists():
        _refuse_existing(outputs, options)
    bundle = read_bundle(bundle_path)
    inputs = look_at(before, after, options)
    for line in _words(inputs):
        tell(line)
    try:
        with open_detector(bundle, options.engine) as (detector, entry, reason):
            run = Run(bundle, inputs, options, outputs, detector, entry, reason)
            report = _run(run, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(INTERRUPTED) from None
    discard_progress(outputs[0])
    return report


def _run(run: Run, progress: Progress | None) -> SceneReport:
    task, header = _task(run), _header(run)
    with open_journal(run.outputs[0], header, restart=run.options.restart) as journal:
        if not journal.publishing:
            _refuse_existing(run.outputs, run.options)
        resumed = journal.finished
        infer(task, run.detector.probability, journal, progress)
        counts, polygons = _publish(run, header, journal)
        return _report(run, journal, counts, polygons, resumed)


def _refuse_existing(outputs: list[Path], options: SceneOptions) -> None:
    for path in outputs:
        refuse_existing(path, options.force)


def look_at(before: Path, after: Path, options: SceneOptions) -> Inputs:
    """All that is decided before the first tile; raises as :func:`open_pair` and :func:`find_scaling`."""
    with open_pair(before, after, align=options.align) as pair:
        scalings = find_scaling(pair.before, options.before), find_scaling(pair.after, options.after)
        shift = residual_shift(pair, scalings)
        stamp = _stamp(before, after)
        return Inputs((before, after), (file_sha256(before), file_sha256(after)), stamp, scalings, pair.grid, shift)


def _words(inputs: Inputs) -> list[str]:
    lines = [f"{date}: {scaling}" for date, scaling in zip(("before", "after"), inputs.scalings, strict=True)]
    if inputs.shift and max(map(abs, inputs.shift)) > 1:
        lines.append(
            f"warning: the second date lies about {inputs.shift[0]:+.0f} rows and {inputs.shift[1]:+.0f} columns "
            "beside the first; what does not move may be taken for change: register them first"
        )
    return lines


def _task(run: Run) -> Task:
    grid, interface = run.inputs.grid, run.detector.interface
    layout = lay_out(grid.height, grid.width, interface.tile, run.overlap, grid.anchor)
    batch = min(run.options.batch, interface.max_batch)
    return Task(partial(open_pair, *run.inputs.paths, align=run.options.align), run.inputs.scalings, layout, batch)


def _header(run: Run) -> Header:
    """What the map and its products depend on, by the words a user knows it by."""
    inputs, options = run.inputs, run.options
    settings = {
        "the bundle": file_sha256(run.bundle.path / MANIFEST),
        "the engine": f"{run.entry.name} on {run.detector.engine.device}",
        "the before raster": inputs.sha256[0],
        "the after raster": inputs.sha256[1],
        "the scaling of before": str(inputs.scalings[0]),
        "the scaling of after": str(inputs.scalings[1]),
        "the grid": inputs.grid.words(),
        "--overlap": str(run.overlap),
        **{f"--{name.replace('_', '-')}": str(getattr(options, name)) for name in _SETTINGS},
        **{f"--{name}": os.path.realpath(path) for name, path in options.products().items()},
    }
    return Header(FORMAT, inputs.grid.height, inputs.grid.width, settings)


def _publish(run: Run, header: Header, journal: Journal) -> tuple[Counts, int | None]:
    """Write all outputs, and give them their names when all are complete."""
    options, threshold = run.options, run.bundle.manifest.threshold
    writer = MapWriter(journal.probabilities, run.inputs.grid, threshold, _tags(run, header), options.cog)
    with staged(run.outputs) as places:
        by_name = dict(zip(options.products(), places[1:], strict=True))
        counts, polygons = writer.change(places[0]), None
        if place := by_name.get("probability"):
            writer.probability(place)
        if place := by_name.get("vector"):
            smallest = VectorOptions(options.min_area, options.simplify)
            polygons = write_polygons(place, places[0], journal.probabilities, run.inputs.grid, smallest)
        if place := by_name.get("quicklook"):
            with open_pair(*run.inputs.paths, align=options.align) as pair, resumable_errors(place):
                write_quicklook(place, pair, run.inputs.scalings, journal.probabilities, threshold)
        if _stamp(*run.inputs.paths) != run.inputs.stamp:
            raise InputError("an input raster was changed while it was read; start anew with --restart")
        journal.publish()
        publish_all(places, run.outputs)
    return counts, polygons


def _tags(run: Run, header: Header) -> dict[str, str]:
    """What was run on what, for the outputs; nothing of this moment, so that equal runs have equal bytes."""
    manifest, inputs = run.bundle.manifest, run.inputs
    return {
        "MISGNET_BUNDLE_VERSION": str(manifest.bundle_version),
        "MISGNET_BUNDLE_SHA256": header.settings["the bundle"],
        "MISGNET_WEIGHTS_SHA256": manifest.source_weights_sha256,
        "MISGNET_ENGINE": header.settings["the engine"],
        "MISGNET_THRESHOLD": f"{manifest.threshold:g}",
        "MISGNET_OVERLAP": header.settings["--overlap"],
        "MISGNET_ALIGNED": header.settings["--align"],
        "MISGNET_BEFORE_SHA256": inputs.sha256[0],
        "MISGNET_BEFORE_SCALING": str(inputs.scalings[0]),
        "MISGNET_AFTER_SHA256": inputs.sha256[1],
        "MISGNET_AFTER_SCALING": str(inputs.scalings[1]),
    }


def _stamp(*paths: Path) -> _Stamp:
    try:
        return tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    except OSError as error:
        raise InputError(f"input {error.filename} cannot be read any more: {error.strerror}") from error


def _report(run: Run, journal: Journal, counts: Counts, polygons: int | None, resumed: int) -> SceneReport:
    grid = run.inputs.grid
    pixels = grid.height * grid.width
    unread = len(journal.holes), sum(height * width for *_, height, width in journal.holes)
    changed = counts.changed / max(1, pixels - counts.nodata)
    return SceneReport(
        grid.height, grid.width, changed, counts.nodata / pixels, unread, polygons, resumed, run.entry.name, run.reason
    )
