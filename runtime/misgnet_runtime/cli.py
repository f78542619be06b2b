"""``misgnet-run``: run a bundle, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from misgnet_runtime import arguments
from misgnet_runtime.console import err_console, make_app, out_console, run_app
from misgnet_runtime.errors import UsageError
from misgnet_runtime.scenes.commands import COMMANDS

if TYPE_CHECKING:
    from misgnet_runtime.scenes.options import SceneOptions

app = make_app(
    "misgnet-run",
    "Run a bundle on this machine. Exit codes: 2 usage, 3 a failed gate, 4 bad input, 5 a missing device or library.",
)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    before: Annotated[Path, typer.Argument(help="the earlier date: an 8-bit RGB image; for -o X.tif a GeoTIFF")],
    after: Annotated[Path, typer.Argument(help="the later date, same size and grid")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help=".png: mask of 0 and 255; .tif: georeferenced change")],
    engine: Annotated[str, typer.Option(help="an engine of the bundle, or auto")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="replace existing outputs")] = False,
    probability: arguments.ProbabilityFile = None,
    vector: arguments.VectorFile = None,
    quicklook: arguments.QuicklookFile = None,
    cog: arguments.Cog = False,
    min_area: arguments.MinArea = 0.0,
    simplify: arguments.Simplify = 0.0,
    align: arguments.Align = False,
    overlap: arguments.Overlap = None,
    batch: arguments.Batch = 4,
    streams: arguments.Streams = None,
    threads: arguments.Threads = None,
    restart: arguments.Restart = False,
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
    """The change between two dates: a mask of two images, or a GeoTIFF of two GeoTIFFs of any size.

    A GeoTIFF's run that was interrupted is gone on with by the same command.
    """
    from misgnet_runtime.scenes.options import Declared, SceneOptions

    common = Declared.parse("", bands, scale, offset, stretch)
    first = Declared.parse("before-", before_bands, before_scale, before_offset, before_stretch).over(common)
    second = Declared.parse("after-", after_bands, after_scale, after_offset, after_stretch).over(common)
    options = SceneOptions(
        first, second, align, overlap, batch, streams, threads, cog, probability, vector, quicklook, min_area, simplify,
        engine, force, restart,
    )  # fmt: skip
    if output.suffix.lower() in (".tif", ".tiff"):
        _predict_scene(bundle, before, after, output, options)
    elif options != SceneOptions(engine=engine, force=force):
        raise UsageError(f"output {output.name} is a plain mask; options for scenes need one that ends in .tif")
    else:
        _predict_image(bundle, before, after, output, engine, force)


def _predict_image(bundle: Path, before: Path, after: Path, output: Path, engine: str, force: bool) -> None:
    from misgnet_runtime.predict import predict_files

    result = predict_files(bundle, before, after, output, engine=engine, force=force)
    _say(
        f"{output}: {result.width} x {result.height} px, {100 * result.changed_share:.2f} % changed, "
        f"engine {result.engine} ({result.reason})"
    )


def _predict_scene(bundle: Path, before: Path, after: Path, output: Path, options: SceneOptions) -> None:
    from rich.progress import Progress

    from misgnet_runtime.scenes.predict import predict_scene_files

    with Progress(console=err_console, transient=True) as bar:
        task = bar.add_task("rows of tiles", total=None)
        result = predict_scene_files(
            bundle, before, after, output, options, tell=_tell,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    for line in result.lines(output):
        _say(line)


def _say(line: str) -> None:
    out_console.print(line, soft_wrap=True, highlight=False, markup=False)


def _tell(line: str) -> None:
    err_console.print(line, soft_wrap=True, highlight=False, markup=False)


@app.command()
def info(bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")]) -> None:
    """What is in a bundle, and what this machine can run of it and why not."""
    from misgnet_runtime.info import print_info

    print_info(bundle, out_console)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    engine: Annotated[Optional[str], typer.Option(help="one engine [default: all that can run here]")] = None,  # noqa: UP045 - typer on 3.10
) -> None:
    """Check every file's digest, then the golden tiles on this machine's engines."""
    from misgnet_runtime.verify import verify_bundle

    for line in verify_bundle(bundle, engine):
        _say(line)


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    run_app(app)


if __name__ == "__main__":
    main()
