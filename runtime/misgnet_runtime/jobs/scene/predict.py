"""Predicts the change of a pair of GeoTIFFs: change raster, polygons and quick look, written atomically, resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from PIL import Image

from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.selection import DetectorOpener, Opened, open_detector
from misgnet_runtime.jobs.journal import can_resume, discard_progress
from misgnet_runtime.jobs.scene.infer import infer
from misgnet_runtime.jobs.scene.inputs import inspected, warn_of_resolution
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.run import INTERRUPTED, Run, SceneReport, refuse_outputs, run_pair
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.raster.changes import check_libraries
from misgnet_runtime.raster.grid import Grid
from misgnet_runtime.raster.reader import open_pair
from misgnet_runtime.raster.registration import load_registration
from misgnet_runtime.raster.source import RasterFile, local_paths
from misgnet_runtime.raster.stac.locate import locate_dates
from misgnet_runtime.raster.writer import is_mask
from misgnet_runtime.storage.atomic import refuse_inputs

MOST_PNG_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # the most that Pillow opens; such a mask is held in memory


def predict_scene_files(
    bundle: Path | Bundle,
    before: RasterFile | Path | str,
    after: RasterFile | Path | str,
    output: Path,
    options: SceneOptions | None = None,
    *,
    log: EventLog | None = None,
    progress: Progress | None = None,
    opener: DetectorOpener = open_detector,
) -> SceneReport:
    """Writes the change between two GeoTIFFs as ``output`` (.tif or .png), and the other outputs in ``options``.

    ``log`` receives scalings and warnings; ``opener`` opens the engine. Memory use does not depend on the scene's
    height; it grows with its width (one tile's height of rows). The same call resumes an interrupted run. Raises
    UsageError, InputError, UnavailableError or GateFailed; no output file is created in that case.
    """
    options = options or SceneOptions()
    bundle = read_bundle(bundle) if isinstance(bundle, Path) else bundle
    opening = partial(opener, bundle, options.engine, options.execution, optimise_for=options.optimise_for)
    return predict_opened(
        bundle, opening, before, after, output, options=options, log=log or current(), progress=progress
    )


def predict_opened(
    bundle: Bundle,
    opening: Callable[[], AbstractContextManager[Opened]],
    before: RasterFile | Path | str,
    after: RasterFile | Path | str,
    output: Path,
    *,
    options: SceneOptions,
    log: EventLog,
    progress: Progress | None = None,
    tags: Mapping[str, str] | None = None,
    name: str | None = None,
    places: Mapping[str, Path] | None = None,
) -> SceneReport:
    """Does the work of :func:`predict_scene_files`; ``opening`` opens the bundle's engine, in another thread.

    It does so while the pixels are inspected, after all other checks. For an engine that stays open for many scenes,
    ``opening`` returns :func:`contextlib.nullcontext` of it. Each raster is opened once: metadata, tiles and pictures
    are read from the same open file. ``tags`` are added to those of the outputs; ``name`` is the scene's (default: that
    of AFTER). If the caller moves the outputs, ``places`` are their final paths by option, which a STAC Item names.
    """
    options.check(output)
    log = log.remembering() if log.warnings is None else log
    check_libraries(vector=options.vector is not None, report=options.report is not None)
    if options.coregister:
        load_registration()
    files = tuple(options.outputs(output).values())
    outputs = [Path(os.path.realpath(path)) for path in files]
    dates = locate_dates((before, after), options.dates, options.remote)
    refuse_inputs(files, local_paths(*dates, *options.inputs()))
    if not can_resume(outputs[0]):
        refuse_outputs(outputs, options.force)
    pixels = bundle.manifest.interface.pixels
    with (
        open_pair(*dates, align=options.align, pixels=pixels) as given,
        opened_meanwhile(opening) as opened,
        inspected(given, options) as (pair, inputs),
    ):
        inputs.report(log)
        for raster in (pair.before, pair.after) if options.align else (pair.before,):  # else both have one grid
            warn_of_resolution(raster, bundle.manifest.resolution, log)
        if is_mask(output):
            check_mask(inputs.grid, output, log)
        try:
            detector, entry, reason = opened()
            run = Run(
                bundle=bundle, inputs=inputs, options=options, outputs=outputs, interface=detector.interface,
                entry=entry, device=detector.engine.device, streams=detector.engine.streams, reason=reason,
                tuned_batch=detector.batch, tags=dict(tags or {}), name=name, places=dict(places or {}),
            )  # fmt: skip
            report = run_pair(run, pair, lambda task: infer(task, detector.probability), log, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(INTERRUPTED) from None
    discard_progress(outputs[0])
    return report


@contextmanager
def opened_meanwhile(opening: Callable[[], AbstractContextManager[Opened]]) -> Iterator[Callable[[], Opened]]:
    """Opens an engine in another thread; yields a function that waits for it, and raises the error if it cannot open.

    The engine is closed at the end of the block, which waits until it is open.
    """
    with ExitStack() as stack, ThreadPoolExecutor(1, "misgnet-open") as thread:
        yield thread.submit(lambda: stack.enter_context(opening())).result


def check_mask(grid: Grid, output: Path, log: EventLog) -> None:
    """Logs that a PNG keeps no georeferencing.

    Raises:
        InputError: The scene has too many pixels for a PNG.
    """
    if grid.height * grid.width > MOST_PNG_PIXELS:
        raise InputError(
            f"the scene has {grid.width:,} x {grid.height:,} px, and a PNG mask may have at most {MOST_PNG_PIXELS:,} "
            f"pixels; choose -o {output.stem}.tif"
        )
    if grid.has_transform or grid.crs:
        log.info(f"{output.name} keeps no georeferencing (the scene is {grid}); -o {output.stem}.tif does")
