"""A pair of GeoTIFFs to a change raster, polygons and a picture: whole or not at all, and resumable."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.callables import Progress
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.selection import Opened, open_detector
from misgnet_runtime.jobs.journal import Journal, discard_progress, was_begun
from misgnet_runtime.jobs.scene.infer import Task, Work, infer
from misgnet_runtime.jobs.scene.inputs import look_at
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.run import INTERRUPTED, Run, SceneReport, refuse_outputs, run_pair
from misgnet_runtime.log import EventLog, current
from misgnet_runtime.raster.mask import check_mask, is_mask, warn_of_nodata
from misgnet_runtime.raster.polygons import load_vector_libraries
from misgnet_runtime.raster.unreadable import Tally
from misgnet_runtime.storage.atomic import refuse_inputs


def predict_scene_files(
    bundle: Path | Bundle,
    before: Path,
    after: Path,
    output: Path,
    options: SceneOptions | None = None,
    *,
    log: EventLog | None = None,
    progress: Progress | None = None,
) -> SceneReport:
    """Write the change between two GeoTIFFs as ``output``, .tif or .png, and what ``options`` ask for beside it.

    ``log`` gets what a user should know: scalings, and warnings. Memory does not grow with the
    scene's height, and with its width by a tile's height of it. An interrupted run is gone on with by the same call.
    Raises UsageError, InputError, UnavailableError or GateFailed; then no output has its name.
    """
    options = options or SceneOptions()
    bundle = read_bundle(bundle) if isinstance(bundle, Path) else bundle
    opening = partial(open_detector, bundle, options.engine, options.execution, goal=options.goal)
    return predict_opened(bundle, opening, before, after, output, options, log=log or current(), progress=progress)


def predict_opened(
    bundle: Bundle,
    opening: Callable[[], AbstractContextManager[Opened]],
    before: Path,
    after: Path,
    output: Path,
    options: SceneOptions,
    *,
    log: EventLog,
    progress: Progress | None = None,
) -> SceneReport:
    """As :func:`predict_scene_files`, with a bundle that was read; ``opening`` gives its engine when all else is known.

    An engine that serves many scenes stays open: ``opening`` is :func:`contextlib.nullcontext` of it.
    """
    options.check(output)
    if options.vector:
        load_vector_libraries()
    outputs = [Path(os.path.realpath(path)) for path in (output, *options.products().values())]
    refuse_inputs((output, *options.products().values()), (before, after))
    if not was_begun(outputs[0]):
        refuse_outputs(outputs, options.force)
    inputs = look_at(before, after, options)
    inputs.report(log)
    if is_mask(output):
        check_mask(inputs.grid, output, log)
    try:
        with opening() as (detector, entry, reason):
            engine = detector.engine
            run = Run(
                bundle, inputs, options, outputs, detector.interface, entry, engine.device, engine.streams, reason,
                tuned_batch=detector.batch,
            )  # fmt: skip
            report = run_pair(run, lambda *parts: _infer(*parts, detector=detector, progress=progress), log)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(INTERRUPTED) from None
    discard_progress(outputs[0])
    if is_mask(output):
        warn_of_nodata(output, report.nodata_share, log)
    return report


def _infer(run: Run, journal: Journal, tally: Tally, *, detector: ChangeDetector, progress: Progress | None) -> Work:
    task = Task(run.inputs.open_pair, run.inputs.scalings, run.layout, run.batch, tally, run.streams)
    return infer(task, detector.probability, journal, progress)
