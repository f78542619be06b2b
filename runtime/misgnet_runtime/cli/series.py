"""``misgnet-run encode`` and ``misgnet-run series``. Cheap to import."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from misgnet_runtime.cli import options as arguments
from misgnet_runtime.log import current

if TYPE_CHECKING:
    from misgnet_runtime.jobs.scene.run import SceneReport

_Bundle = Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build --split")]


def encode(
    bundle: _Bundle,
    raster: Annotated[Path, typer.Argument(help="one date, a GeoTIFF of any size")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="its features, for series; ends in .features")],
    engine: arguments.Engine = "auto",
    force: Annotated[bool, typer.Option("--force", help="replace an existing output")] = False,
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
) -> None:
    """One date's features, kept so that any number of later dates are compared with it, each encoded once.

    A run that was interrupted is gone on with by the same command.
    """
    from misgnet_runtime.jobs.scene.options import SceneOptions
    from misgnet_runtime.jobs.series.encode import encode_file
    from misgnet_runtime.raster.declared import Declared

    declared = Declared.parse("", bands, scale, offset, stretch)
    options = SceneOptions(
        before=declared, overlap=overlap, batch=batch, streams=streams, threads=threads, engine=engine, force=force,
        restart=restart, tuned=not no_tuned, max_unreadable=max_unreadable,
    )  # fmt: skip
    with current().progress("rows of tiles") as progress:
        report = encode_file(bundle, raster, output, options, log=current(), progress=progress)
    current().result(report.lines(), output=output, **report.figures())


def series(
    bundle: _Bundle,
    reference: Annotated[Path, typer.Argument(help="the earliest date, a GeoTIFF of any size")],
    dates: Annotated[list[Path], typer.Argument(help="the later ones: each is compared with the first")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder that gets DATE.tif for each of them")],
    consecutive: Annotated[bool, typer.Option("--consecutive", help="compare each date with the one before")] = False,
    features: Annotated[Optional[Path], typer.Option(help="the reference's, made by encode")] = None,  # noqa: UP045 - typer on 3.10
    discard_features: Annotated[
        bool, typer.Option("--discard-features", help="keep none in the folder for a later series")
    ] = False,
    engine: arguments.Engine = "auto",
    force: Annotated[bool, typer.Option("--force", help="replace existing outputs of other runs")] = False,
    probability: arguments.WithProbability = False,
    vector: arguments.WithVector = False,
    quicklook: arguments.WithQuicklook = False,
    cog: arguments.Cog = False,
    min_area: arguments.MinArea = 0.0,
    simplify: arguments.Simplify = 0.0,
    align: arguments.AlignAll = False,
    overlap: arguments.Overlap = None,
    batch: arguments.Batch = None,
    streams: arguments.Streams = None,
    threads: arguments.Threads = None,
    no_tuned: arguments.NoTuned = False,
    restart: arguments.RestartAll = False,
    max_unreadable: arguments.MaxUnreadable = 0.0,
    bands: arguments.Bands = None,
    scale: arguments.Scale = None,
    offset: arguments.Offset = None,
    stretch: arguments.Stretch = None,
    before_bands: arguments.Reference = None,
    before_scale: arguments.Reference = None,
    before_offset: arguments.Reference = None,
    before_stretch: arguments.Reference = None,
    after_bands: arguments.Later = None,
    after_scale: arguments.Later = None,
    after_offset: arguments.Later = None,
    after_stretch: arguments.Later = None,
) -> None:
    """The change of every later date since the first, or since the date before it: each date is encoded once.

    A series that was interrupted is gone on with by the same command, and one with more dates by the longer command.
    """
    from misgnet_runtime.jobs.scene.options import SceneOptions, SeriesOptions
    from misgnet_runtime.jobs.series.series import Listener, run_series
    from misgnet_runtime.raster.declared import declared_dates

    first, later = declared_dates(
        (bands, scale, offset, stretch),
        (before_bands, before_scale, before_offset, before_stretch),
        (after_bands, after_scale, after_offset, after_stretch),
    )
    scene = SceneOptions(
        first, later, align, overlap, batch, streams, threads, cog, min_area=min_area, simplify=simplify,
        engine=engine, force=force, restart=restart, tuned=not no_tuned, max_unreadable=max_unreadable,
    )  # fmt: skip
    asked = {"probability": probability, "vector": vector, "quicklook": quicklook}
    products = frozenset(name for name, wanted in asked.items() if wanted)
    options = SeriesOptions(scene, products, consecutive, features, discard_features)

    def finished(path: Path, report: SceneReport) -> None:
        current().result(report.lines(path), output=path, **asdict(report))

    with current().progress("rows of tiles") as progress:
        run_series(bundle, reference, dates, output, options=options, listener=Listener(current(), finished, progress))
