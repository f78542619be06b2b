"""Implements ``misgnet-run predict``: the change of one pair of images or GeoTIFFs, or of two folders."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from misgnet_runtime.cli.options import BundlePath, takes_options
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.log import current
from misgnet_runtime.raster.remote.address import is_address

_FILES = (".png", ".tif", ".tiff")  # names of masks and maps


@takes_options
def predict(
    bundle: BundlePath,
    before: Annotated[
        str,
        typer.Argument(
            help="Earlier date: a GeoTIFF or a STAC Item (a path or, with --remote, an address), an image (8-bit RGB "
            "for most bundles), or a folder."
        ),
    ],
    after: Annotated[
        str, typer.Argument(help="Later date: same size and grid as BEFORE; in a folder, same file names.")
    ],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="File to write: .png for a mask of 0 and 255, .tif for a georeferenced change map. "
            "For two folders, the folder of the masks or maps.",
        ),
    ],
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="For two folders: leave existing outputs as they are; a warning names those of a run that differs.",
        ),
    ] = False,
    options: SceneOptions,
) -> None:
    """Map the change between two dates: two images, two GeoTIFFs of any size, or two folders with equal file names.

    Two images give a PNG mask. Two GeoTIFFs give a GeoTIFF, or a PNG mask with -o X.png. Rerun the same command to
    resume an interrupted run of folders or GeoTIFFs.
    """
    paths = Path(before), Path(after)
    scene = any(map(_is_scene, (before, after)))
    if not scene and any(path.is_dir() for path in paths):
        _predict_folders(bundle, *paths, output, options, skip_existing=skip_existing)
    elif skip_existing:
        raise UsageError("--skip-existing is for two folders; BEFORE and AFTER are files")
    elif scene or output.suffix.lower() in (".tif", ".tiff") or _are_rasters(*paths):
        _predict_scene(bundle, before, after, output, options)
    else:
        _predict_image(bundle, *paths, output, options)


def _is_scene(text: str) -> bool:
    """Returns whether a date is an address, or a STAC Item, which are always run as scenes."""
    from misgnet_runtime.raster.stac.locate import is_item

    return is_address(text) or is_item(text)


def _are_rasters(before: Path, after: Path) -> bool:
    from misgnet_runtime.jobs.image import are_rasters

    return are_rasters(before, after)


def _predict_image(bundle: Path, before: Path, after: Path, output: Path, options: SceneOptions) -> None:
    from misgnet_runtime.jobs.image import predict_files

    plain = {name: getattr(options, name) for name in ("engine", "force", "overlap", "threshold", "tuned")}
    batch = options.execution.batch
    if options != SceneOptions(**plain, execution=ExecutionOptions(batch=batch)):
        raise UsageError(
            f"output {output.name} is a plain mask, and options for GeoTIFFs were given; choose an output that ends "
            "in .tif"
        )
    report = predict_files(bundle, before, after, output, **plain, batch=batch)
    current().result([report.line(output)], output=output, **asdict(report))


def _predict_folders(
    bundle: Path, before: Path, after: Path, output: Path, options: SceneOptions, *, skip_existing: bool
) -> None:
    from misgnet_runtime.jobs.folder import predict_folders

    if output.suffix.lower() in _FILES and not output.is_dir():
        raise UsageError(f"BEFORE and AFTER are folders, and -o is {output}, the name of a file; name a folder")
    if options.remote.remote:
        raise UsageError("--remote allows addresses of rasters, and BEFORE or AFTER is a folder; leave --remote out")
    with current().progress("pairs") as progress:
        report = predict_folders(bundle, before, after, output, options, skip_existing=skip_existing, progress=progress)
    current().result([report.line(output)], output=output, **asdict(report))


def _predict_scene(bundle: Path, before: str, after: str, output: Path, options: SceneOptions) -> None:
    from misgnet_runtime.jobs.scene.predict import predict_scene_files

    with current().progress("rows of tiles") as progress:
        report = predict_scene_files(bundle, before, after, output, options, log=current(), progress=progress)
    current().result(report.lines(output), output=output, **asdict(report))
