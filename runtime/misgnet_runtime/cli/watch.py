"""``misgnet-run watch``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from misgnet_runtime.cli.options import BundlePath, takes_options
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.log import current


@takes_options
def watch(
    bundle: BundlePath,
    folder: Annotated[Path, typer.Argument(help="Where pairs arrive: NAME_before.EXT and NAME_after.EXT.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of NAME_change.tif and .png, and a journal.")],
    options: WatchOptions,
) -> None:
    """Process every pair of images that is completely written in a folder, once, in the order in which they came.

    Pairs of GeoTIFFs become maps, pairs of PNG or JPEG images masks. OUT/watch.jsonl says what became of each; a
    watcher that is started again resumes from there. SIGTERM and Ctrl-C end it. Links are not followed.
    """
    from misgnet_runtime.jobs.watch.service import watch_folder

    report = watch_folder(bundle, folder, output, options, current())
    current().result([report.line(output)], output=output, **asdict(report))
