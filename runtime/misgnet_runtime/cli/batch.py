"""Implements ``misgnet-run batch``: many pairs of GeoTIFFs, listed in a CSV table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from misgnet_runtime.cli.options import BundlePath, takes_options
from misgnet_runtime.formatting import format_change
from misgnet_runtime.jobs.batch.options import BatchOptions
from misgnet_runtime.log import EventLog, current

if TYPE_CHECKING:
    from misgnet_runtime.jobs.batch.driver import Listener
    from misgnet_runtime.jobs.batch.record import End


@takes_options
def batch(
    bundle: BundlePath,
    scenes: Annotated[
        Path,
        typer.Argument(help="CSV file with columns id, before and after; any option of predict may be another column."),
    ],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for ID.tif of each scene, and results.csv.")],
    options: BatchOptions,
) -> None:
    """Map the change of many pairs of GeoTIFFs on this machine, on a Ray cluster, or in shards run by any scheduler.

    Rerun the same command to resume an interrupted run and to retry failed scenes. Exit code 6 means that some scenes
    failed and all others are finished.
    """
    from misgnet_runtime.jobs.batch.run import run_batch

    log = current()
    with log.progress("scenes") as progress:
        report = run_batch(bundle, scenes, output, options, _listener(log, progress))
    log.result([report.line(output)], output=output, done=report.done, earlier=report.earlier, failed=report.failed)
    report.raise_failed()


def _listener(log: EventLog, progress: object) -> Listener:
    from misgnet_runtime.jobs.batch.driver import Listener
    from misgnet_runtime.jobs.batch.record import Done

    def finished(end: End) -> None:
        if isinstance(end, Done):
            changed = format_change(end.figures["changed_share"], end.figures.get("valid_share", 1.0))
            names = ", ".join(reversed(end.outputs))
            figures = {"scene": end.scene, "outputs": end.outputs, "attempts": end.attempts, **end.figures}
            log.result([f"{end.scene}: {changed}: {names}"], **figures)
        else:
            log.warning(f"{end.scene} failed: {end.message}", scene=end.scene, attempts=end.attempts)

    return Listener(log, finished, progress)  # type: ignore[arg-type]
