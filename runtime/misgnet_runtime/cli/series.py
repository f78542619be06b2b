"""``misgnet-run encode`` and ``misgnet-run series``. Cheap to import."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from misgnet_runtime.cli.options import takes_options
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.series.options import OF_MAPS, SeriesOptions
from misgnet_runtime.log import current
from misgnet_runtime.options import group

if TYPE_CHECKING:
    from misgnet_runtime.jobs.scene.run import SceneReport

_Bundle = Annotated[Path, typer.Argument(help="A bundle made by misgnet-export build --split.")]


@dataclass(frozen=True, kw_only=True)
class _EncodeOptions:
    scene: SceneOptions = group(SceneOptions, without=OF_MAPS, help={"force": "Replace an existing output."})


@takes_options
def encode(
    bundle: _Bundle,
    raster: Annotated[Path, typer.Argument(help="One date, a GeoTIFF of any size.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Its features, for series; ends in .features.")],
    options: _EncodeOptions,
) -> None:
    """One date's features, kept so that any number of later dates are compared with it, each encoded once.

    A run that was interrupted is resumed by the same command.
    """
    from misgnet_runtime.jobs.series.encode import encode_file

    with current().progress("rows of tiles") as progress:
        report = encode_file(bundle, raster, output, options.scene, log=current(), progress=progress)
    current().result(report.lines(), output=output, **report.figures())


@takes_options
def series(
    bundle: _Bundle,
    reference: Annotated[Path, typer.Argument(help="The earliest date, a GeoTIFF of any size.")],
    dates: Annotated[list[Path], typer.Argument(help="The later ones: each is compared with the first.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder that gets DATE.tif for each of them.")],
    options: SeriesOptions,
) -> None:
    """The change of every later date since the first, or since the date before it: each date is encoded once.

    A series that was interrupted is resumed by the same command, and one with more dates by the longer command.
    """
    from misgnet_runtime.jobs.series.series import Listener, run_series

    def finished(path: Path, report: SceneReport) -> None:
        current().result(report.lines(path), output=path, **asdict(report))

    with current().progress("rows of tiles") as progress:
        run_series(bundle, reference, dates, output, options=options, listener=Listener(current(), finished, progress))
