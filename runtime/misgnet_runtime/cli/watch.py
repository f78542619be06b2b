"""Implements ``misgnet-run watch``: a service that processes pairs as they arrive in a folder."""

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
    folder: Annotated[Path, typer.Argument(help="Folder in which pairs arrive as NAME_before.EXT and NAME_after.EXT.")],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="Folder for NAME_change.tif or NAME_change.png of each pair, and a journal."
        ),
    ],
    options: WatchOptions,
) -> None:
    """Process each pair of images in a folder once it is completely written, in order of arrival.

    Pairs of GeoTIFFs give change maps, pairs of PNG or JPEG images give masks. OUT/watch.jsonl records the result of
    each pair; after a restart the watcher resumes from this journal. SIGTERM or Ctrl-C stops it. Symbolic links are
    not followed.
    """
    from misgnet_runtime.jobs.watch.service import watch_folder

    report = watch_folder(bundle, folder, output, options, current())
    current().result([report.line(output)], output=output, **asdict(report))
