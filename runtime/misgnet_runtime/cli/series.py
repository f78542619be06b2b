"""Implements ``misgnet-run encode`` and ``misgnet-run series``. Cheap to import."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from misgnet_runtime.cli.options import takes_options
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.series.options import OF_MAPS, OF_PAIRS, SeriesOptions
from misgnet_runtime.log import current
from misgnet_runtime.options import group

if TYPE_CHECKING:
    from misgnet_runtime.jobs.scene.run import SceneReport

_Bundle = Annotated[Path, typer.Argument(help="Folder of a bundle made by misgnet-export build --split.")]


@dataclass(frozen=True, kw_only=True)
class _EncodeOptions:
    scene: SceneOptions = group(
        SceneOptions, without=(*OF_MAPS, *OF_PAIRS), help={"force": "Replace an existing output."}
    )


@takes_options
def encode(
    bundle: _Bundle,
    raster: Annotated[
        str, typer.Argument(help="GeoTIFF or STAC Item of one date: a path or, with --remote, an address.")
    ],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="File of features to write, for series; its name ends in .features.",
        ),
    ],
    options: _EncodeOptions,
) -> None:
    """Encode one date and save its features, so that series can compare any number of later dates with it.

    Rerun the same command to resume an interrupted run.
    """
    from misgnet_runtime.jobs.series.encode import encode_file

    with current().progress("rows of tiles") as progress:
        report = encode_file(bundle, raster, output, options.scene, log=current(), progress=progress)
    current().result(report.lines(), output=output, **report.figures())


@takes_options
def series(
    bundle: _Bundle,
    reference: Annotated[
        str, typer.Argument(help="GeoTIFF or STAC Item of the earliest date: a path or, with --remote, an address.")
    ],
    dates: Annotated[
        list[str],
        typer.Argument(help="GeoTIFFs or STAC Items of the later dates; each is compared with the reference."),
    ],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for DATE.tif of each later date.")],
    options: SeriesOptions,
) -> None:
    """Map the change of each later date since the first date, or since the previous one; each date is encoded once.

    Rerun the same command to resume an interrupted series. To add dates, rerun it with the longer list.
    """
    from misgnet_runtime.jobs.series.series import Listener, run_series

    def finished(path: Path, report: SceneReport) -> None:
        current().result(report.lines(path), output=path, **asdict(report))

    with current().progress("rows of tiles") as progress:
        run_series(bundle, reference, dates, output, options=options, listener=Listener(current(), finished, progress))
