"""``misgnet-run predict``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from misgnet_runtime.cli.options import BundlePath, takes_options
from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.log import current


@takes_options
def predict(
    bundle: BundlePath,
    before: Annotated[
        Path, typer.Argument(help="The earlier date: an 8-bit RGB image or a folder of them; for -o X.tif a GeoTIFF.")
    ],
    after: Annotated[Path, typer.Argument(help="The later date: same size and grid; in a folder the same names.")],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help=".png: mask of 0 and 255; .tif: georeferenced change; for folders: of masks."
        ),
    ],
    options: SceneOptions,
) -> None:
    """Map the change between two dates: of images, GeoTIFFs of any size, or the pairs of equal names in two folders.

    Images become a mask, GeoTIFFs a GeoTIFF (with -o X.png a mask). The same command resumes an interrupted run of a
    folder or a GeoTIFF.
    """
    if before.is_dir() or after.is_dir():
        _predict_folders(bundle, before, after, output, options)
    elif output.suffix.lower() in (".tif", ".tiff") or _are_rasters(before, after):
        _predict_scene(bundle, before, after, output, options)
    else:
        _predict_image(bundle, before, after, output, options)


def _are_rasters(before: Path, after: Path) -> bool:
    from misgnet_runtime.jobs.image import are_rasters

    return are_rasters(before, after)


def _predict_image(bundle: Path, before: Path, after: Path, output: Path, options: SceneOptions) -> None:
    from misgnet_runtime.jobs.image import predict_files

    if options != SceneOptions(engine=options.engine, force=options.force, tuned=options.tuned):
        raise UsageError(f"output {output.name} is for plain masks; options for scenes need one that ends in .tif")
    report = predict_files(
        bundle, before, after, output, engine=options.engine, tuned=options.tuned, force=options.force
    )
    current().result([report.line(output)], output=output, **asdict(report))


def _predict_folders(bundle: Path, before: Path, after: Path, output: Path, options: SceneOptions) -> None:
    from misgnet_runtime.jobs.folder import predict_folders

    with current().progress("pairs") as progress:
        report = predict_folders(bundle, before, after, output, options, progress=progress)
    current().result([report.line(output)], output=output, **asdict(report))


def _predict_scene(bundle: Path, before: Path, after: Path, output: Path, options: SceneOptions) -> None:
    from misgnet_runtime.jobs.scene.predict import predict_scene_files

    with current().progress("rows of tiles") as progress:
        report = predict_scene_files(bundle, before, after, output, options, log=current(), progress=progress)
    current().result(report.lines(output), output=output, **asdict(report))
