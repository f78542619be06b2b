"""``misgnet-run watch``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from misgnet_runtime.cli import options as arguments
from misgnet_runtime.log import current

_Text = Optional[str]  # noqa: UP045 - typer on 3.10
_Seconds = Optional[float]  # noqa: UP045
_Vector = Optional[Literal["gpkg", "geojson", "fgb"]]  # noqa: UP045


def watch(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    folder: Annotated[Path, typer.Argument(help="where pairs arrive: NAME_before.EXT and NAME_after.EXT")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of NAME_change.tif and .png, and a journal")],
    engine: arguments.Engine = "auto",
    before_suffix: Annotated[str, typer.Option(help="how names of the earlier date end, before .EXT")] = "_before",
    after_suffix: Annotated[str, typer.Option(help="how names of the later date end, before .EXT")] = "_after",
    marker: Annotated[_Text, typer.Option(help=".done: take pairs that have NAME.done, or FILE.done of both")] = None,
    settle: Annotated[float, typer.Option(help="else: seconds that files must stay unchanged to be complete")] = 2.0,
    poll: Annotated[float, typer.Option(help="seconds between two looks at the folder")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="process what is complete now, and end")] = False,
    reprocess: Annotated[bool, typer.Option("--reprocess", help="process pairs anew whose files have changed")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="try pairs again that failed before")] = False,
    max_attempts: Annotated[
        int,
        typer.Option(help="times that a pair may end the process without progress before it is set aside as failed"),
    ] = 3,
    max_seconds: Annotated[
        _Seconds, typer.Option(help="time limit for each pair, which then has a process of its own (default: no limit)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace others' outputs; go on with another bundle")] = False,
    probability: Annotated[bool, typer.Option("--probability", help="also NAME_probability.tif")] = False,
    vector: Annotated[_Vector, typer.Option(help="also polygons, as NAME_change with this ending")] = None,
    quicklook: Annotated[bool, typer.Option("--quicklook", help="also NAME_quicklook.png")] = False,
    cog: arguments.Cog = False,
    min_area: arguments.MinArea = 0.0,
    simplify: arguments.Simplify = 0.0,
    align: arguments.Align = False,
    overlap: arguments.Overlap = None,
    batch: arguments.Batch = None,
    streams: arguments.Streams = None,
    threads: arguments.Threads = None,
    no_tuned: arguments.NoTuned = False,
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
    """Process every pair of images that is completely written in a folder, once, in the order in which they came.

    Pairs of GeoTIFFs become maps, pairs of PNG or JPEG images masks. OUT/watch.jsonl says what became of each; a
    watcher that is started again resumes from there. SIGTERM and Ctrl-C end it. Links are not followed.
    """
    from misgnet_runtime.jobs.scene.options import SceneOptions
    from misgnet_runtime.jobs.watch.options import Products, WatchOptions
    from misgnet_runtime.jobs.watch.pairing import Naming
    from misgnet_runtime.jobs.watch.service import watch_folder
    from misgnet_runtime.raster.declared import declared_dates

    dates = declared_dates(
        (bands, scale, offset, stretch),
        (before_bands, before_scale, before_offset, before_stretch),
        (after_bands, after_scale, after_offset, after_stretch),
    )
    scene = SceneOptions(
        *dates, align, overlap, batch, streams, threads, cog, min_area=min_area, simplify=simplify, engine=engine,
        force=True, tuned=not no_tuned, max_unreadable=max_unreadable,
    )  # fmt: skip
    options = WatchOptions(
        Naming(before_suffix, after_suffix, marker), Products(probability, vector, quicklook), scene, settle, poll,
        once, reprocess, retry_failed, force, max_attempts, max_seconds,
    )  # fmt: skip
    report = watch_folder(bundle, folder, output, options, current())
    current().result([report.line(output)], output=output, **asdict(report))
