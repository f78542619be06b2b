"""``misgnet-run batch``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from misgnet_runtime.cli import options as arguments
from misgnet_runtime.formatting import changed_words
from misgnet_runtime.log import EventLog, current

if TYPE_CHECKING:
    from misgnet_runtime.jobs.batch.driver import Listener
    from misgnet_runtime.jobs.batch.record import End

_Text = Optional[str]  # noqa: UP045 - typer on 3.10
_Int = Optional[int]  # noqa: UP045


def batch(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    scenes: Annotated[Path, typer.Argument(help="CSV: id, before, after, and any option of predict as a column")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder that gets ID.tif of each, and results.csv")],
    ray: Annotated[_Text, typer.Option(help="a Ray cluster: auto, its address, or none for this machine")] = None,
    shard: Annotated[_Text, typer.Option(help="INDEX/COUNT: this share of the scenes alone, 0/8 to 7/8")] = None,
    workers: Annotated[
        _Int, typer.Option(help="at most so many at once; one here, on Ray one for each GPU or slot of cores")
    ] = None,
    cores: Annotated[_Int, typer.Option(help="of each worker; 1 on Ray, here their share of all")] = None,
    retries: Annotated[int, typer.Option(help="further attempts of a scene whose worker died")] = 2,
    engine: arguments.Engine = "auto",
    force: Annotated[bool, typer.Option("--force", help="replace others' outputs, and another bundle's")] = False,
    probability: Annotated[bool, typer.Option("--probability", help="also ID.probability.tif")] = False,
    vector: Annotated[bool, typer.Option("--vector", help="also ID.gpkg")] = False,
    quicklook: Annotated[bool, typer.Option("--quicklook", help="also ID.png")] = False,
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
    """The change of many pairs of GeoTIFFs: on this machine, on a Ray cluster, or in shares by any scheduler.

    The same command goes on with what an ended run left, and tries again what failed. Exit code 6: some scenes failed,
    and all others are done.
    """
    given = {name: value for name, value in locals().items() if name not in _OWN}
    from misgnet_runtime.jobs.batch.run import BatchOptions, run_batch
    from misgnet_runtime.jobs.batch.table import Shard

    options = BatchOptions(
        words_of(given), Shard.parse(shard), None if ray in (None, "none") else ray, workers, cores, retries
    )
    log = current()
    with log.progress("scenes") as progress:
        report = run_batch(bundle, scenes, output, options, _listener(log, progress))
    log.result([report.line(output)], output=output, done=report.done, earlier=report.earlier, failed=report.failed)
    report.raise_failed()


_OWN = ("bundle", "scenes", "output", "ray", "shard", "workers", "cores", "retries")


def words_of(given: Mapping[str, object]) -> dict[str, str]:
    """Options as the cells of a table say them; nothing of those that were not given."""
    said = {name: value for name, value in given.items() if value is not None and value is not False}
    return {name: "yes" if value is True else str(value) for name, value in said.items()}


def _listener(log: EventLog, progress: object) -> Listener:
    from misgnet_runtime.jobs.batch.driver import Listener
    from misgnet_runtime.jobs.batch.record import Done

    def ended(end: End) -> None:
        if isinstance(end, Done):
            changed = changed_words(end.figures["changed_share"], end.figures.get("valid_share", 1.0))
            names = ", ".join(reversed(end.outputs))
            figures = {"scene": end.scene, "outputs": end.outputs, "attempts": end.attempts, **end.figures}
            log.result([f"{end.scene}: {changed}: {names}"], **figures)
        else:
            log.warning(f"{end.scene} failed: {end.message}", scene=end.scene, attempts=end.attempts)

    return Listener(log, ended, progress)  # type: ignore[arg-type]
