"""``misgnet-run``: run a bundle, without torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from misgnet_runtime.cli import options as arguments
from misgnet_runtime.cli.app import make_app, out_console, run_app
from misgnet_runtime.cli.batch import batch as run_many
from misgnet_runtime.cli.bench import bench
from misgnet_runtime.cli.compile import compile_plans
from misgnet_runtime.cli.series import encode, series
from misgnet_runtime.cli.tune import tune
from misgnet_runtime.cli.watch import watch
from misgnet_runtime.errors import UsageError
from misgnet_runtime.log import current, is_json
from misgnet_runtime.storage.lock import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from misgnet_runtime.jobs.scene.options import SceneOptions

app = make_app(
    "misgnet-run",
    "Run a bundle on this machine. Exit codes: 2 usage, 3 a failed gate, 4 bad input, 5 a missing device or library, "
    "6 some scenes of a batch.",
)


@app.callback()
def every_command(
    *,
    log: arguments.Log = "text",
    require_signature: arguments.RequireSignature = None,
    allow_older: arguments.AllowOlder = False,
    lock_timeout: arguments.LockTimeout = DEFAULT_TIMEOUT,
) -> None:
    """What all commands take, before the command or behind it."""


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    before: arguments.BeforePath,
    after: arguments.AfterPath,
    *,
    output: arguments.MaskOrMap,
    engine: arguments.Engine = "auto",
    force: arguments.Force = False,
    probability: arguments.ProbabilityFile = None,
    vector: arguments.VectorFile = None,
    quicklook: arguments.QuicklookFile = None,
    cog: arguments.Cog = False,
    min_area: arguments.MinArea = 0.0,
    simplify: arguments.Simplify = 0.0,
    align: arguments.Align = False,
    overlap: arguments.Overlap = None,
    batch: arguments.Batch = None,
    streams: arguments.Streams = None,
    threads: arguments.Threads = None,
    no_tuned: arguments.NoTuned = False,
    restart: arguments.Restart = False,
    max_unreadable: arguments.MaxUnreadable = 0.0,
    bands: arguments.Bands = None,
    scale: arguments.Scale = None,
    offset: arguments.Offset = None,
    stretch: arguments.Stretch = None,
    before_bands: arguments.OneDate = None,
    before_scale: arguments.OneDate = None,
    before_offset: arguments.OneDate = None,
    before_stretch: arguments.OneDate = None,
    after_bands: arguments.OneDate = None,
    after_scale: arguments.OneDate = None,
    after_offset: arguments.OneDate = None,
    after_stretch: arguments.OneDate = None,
) -> None:
    """The change between two dates: a mask of two images, a GeoTIFF (or with -o X.png a mask) of two GeoTIFFs of any
    size, or those of all pairs of equal names in two folders.

    A folder's or GeoTIFF's run that was interrupted is gone on with by the same command.
    """
    from misgnet_runtime.jobs.scene.options import SceneOptions
    from misgnet_runtime.raster.declared import declared_dates

    first, second = declared_dates(
        (bands, scale, offset, stretch),
        (before_bands, before_scale, before_offset, before_stretch),
        (after_bands, after_scale, after_offset, after_stretch),
    )
    options = SceneOptions(
        first, second, align, overlap, batch, streams, threads, cog, probability, vector, quicklook, min_area, simplify,
        engine, force, restart, not no_tuned, max_unreadable,
    )  # fmt: skip
    if before.is_dir() or after.is_dir():
        _predict_folders(bundle, before, after, output, options)
    elif output.suffix.lower() in (".tif", ".tiff") or _are_rasters(before, after):
        _predict_scene(bundle, before, after, output, options)
    else:
        _refuse_scene_words(output, options)
        _predict_image(bundle, before, after, output, options)


def _are_rasters(before: Path, after: Path) -> bool:
    from misgnet_runtime.jobs.image import are_rasters

    return are_rasters(before, after)


def _refuse_scene_words(output: Path, options: SceneOptions) -> None:
    from misgnet_runtime.jobs.scene.options import SceneOptions

    if options != SceneOptions(engine=options.engine, force=options.force, tuned=options.tuned):
        raise UsageError(f"output {output.name} is for plain masks; options for scenes need one that ends in .tif")


def _predict_image(bundle: Path, before: Path, after: Path, output: Path, options: SceneOptions) -> None:
    from misgnet_runtime.jobs.image import predict_files

    report = predict_files(
        bundle, before, after, output, engine=options.engine, tuned=options.tuned, force=options.force
    )
    _say(report.line(output), output=output, **asdict(report))


def _predict_folders(bundle: Path, before: Path, after: Path, output: Path, options: SceneOptions) -> None:
    from misgnet_runtime.jobs.folder import predict_folders

    with current().progress("pairs") as progress:
        report = predict_folders(
            bundle, before, after, output, engine=options.engine, batch=options.batch, streams=options.streams,
            threads=options.threads, tuned=options.tuned, force=options.force, progress=progress, scene=options,
        )  # fmt: skip
    _say(report.line(output), output=output, **asdict(report))


def _predict_scene(bundle: Path, before: Path, after: Path, output: Path, options: SceneOptions) -> None:
    from misgnet_runtime.jobs.scene.predict import predict_scene_files

    with current().progress("rows of tiles") as progress:
        report = predict_scene_files(bundle, before, after, output, options, log=current(), progress=progress)
    _say(*report.lines(output), output=output, **asdict(report))


def _say(*lines: str, **figures: object) -> None:
    current().result(list(lines), **figures)


@app.command()
def info(bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")]) -> None:
    """What is in a bundle, and what this machine can run of it and why not."""
    from misgnet_runtime.cli.info import bundle_facts, print_info

    if is_json():
        _say(f"bundle {bundle}", **bundle_facts(bundle))
    else:
        print_info(bundle, out_console)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    engine: Annotated[Optional[str], typer.Option(help="one engine [default: all that can run here]")] = None,  # noqa: UP045 - typer on 3.10
) -> None:
    """Check every file's digest, and the signature if one is required; then golden tiles on this machine's engines."""
    from misgnet_runtime.inference.self_test import verify_bundle

    for line in verify_bundle(bundle, engine):
        _say(line)


app.command("batch")(run_many)
app.command()(bench)
app.command("compile")(compile_plans)
app.command()(encode)
app.command()(series)
app.command()(tune)
app.command()(watch)


def main() -> None:
    run_app(app)
