"""``misgnet-run encode`` and ``misgnet-run series``. Cheap to import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from misgnet_runtime import arguments
from misgnet_runtime.console import err_console, out_console

if TYPE_CHECKING:
    from misgnet_runtime.callables import Progress

_Bundle = Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build --split")]
_Engine = Annotated[str, typer.Option(help="an engine of the bundle, or auto")]


def encode(
    bundle: _Bundle,
    raster: Annotated[Path, typer.Argument(help="one date, a GeoTIFF of any size")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="its features, for series; ends in .features")],
    engine: _Engine = "auto",
    force: Annotated[bool, typer.Option("--force", help="replace an existing output")] = False,
    overlap: arguments.Overlap = None,
    batch: arguments.Batch = 4,
    streams: arguments.Streams = None,
    threads: arguments.Threads = None,
    restart: arguments.Restart = False,
    bands: arguments.Bands = None,
    scale: arguments.Scale = None,
    offset: arguments.Offset = None,
    stretch: arguments.Stretch = None,
) -> None:
    """One date's features, kept so that any number of later dates are compared with it, each encoded once.

    A run that was interrupted is gone on with by the same command.
    """
    from misgnet_runtime.scenes.encode import encode_file
    from misgnet_runtime.scenes.options import Declared, SceneOptions

    declared = Declared.parse("", bands, scale, offset, stretch)
    options = SceneOptions(
        before=declared, overlap=overlap, batch=batch, streams=streams, threads=threads, engine=engine, force=force,
        restart=restart,
    )  # fmt: skip
    with _bar() as progress:
        report = encode_file(bundle, raster, output, options, tell=_tell, progress=progress)
    for line in report.lines():
        _say(line)


def series(
    bundle: _Bundle,
    reference: Annotated[Path, typer.Argument(help="the earliest date, a GeoTIFF of any size")],
    dates: Annotated[list[Path], typer.Argument(help="the later ones: each is compared with the first")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder that gets DATE.tif for each of them")],
    consecutive: Annotated[bool, typer.Option("--consecutive", help="compare each date with the one before")] = False,
    features: Annotated[Optional[Path], typer.Option(help="the reference's, made by encode")] = None,  # noqa: UP045 - typer on 3.10
    discard_features: Annotated[
        bool, typer.Option("--discard-features", help="keep none in the folder for a later series")
    ] = False,
    engine: _Engine = "auto",
    force: Annotated[bool, typer.Option("--force", help="replace existing outputs of other runs")] = False,
    probability: arguments.WithProbability = False,
    vector: arguments.WithVector = False,
    quicklook: arguments.WithQuicklook = False,
    cog: arguments.Cog = False,
    min_area: arguments.MinArea = 0.0,
    simplify: arguments.Simplify = 0.0,
    align: arguments.AlignAll = False,
    overlap: arguments.Overlap = None,
    batch: arguments.Batch = 4,
    streams: arguments.Streams = None,
    threads: arguments.Threads = None,
    restart: arguments.RestartAll = False,
    bands: arguments.Bands = None,
    scale: arguments.Scale = None,
    offset: arguments.Offset = None,
    stretch: arguments.Stretch = None,
    before_bands: arguments.Reference = None,
    before_scale: arguments.Reference = None,
    before_offset: arguments.Reference = None,
    before_stretch: arguments.Reference = None,
    after_bands: arguments.Later = None,
    after_scale: arguments.Later = None,
    after_offset: arguments.Later = None,
    after_stretch: arguments.Later = None,
) -> None:
    """The change of every later date since the first, or since the date before it: each date is encoded once.

    A series that was interrupted is gone on with by the same command, and one with more dates by the longer command.
    """
    from misgnet_runtime.scenes.options import Declared, SceneOptions, SeriesOptions
    from misgnet_runtime.scenes.series import Listener, run_series

    common = Declared.parse("", bands, scale, offset, stretch)
    first = Declared.parse("before-", before_bands, before_scale, before_offset, before_stretch).over(common)
    later = Declared.parse("after-", after_bands, after_scale, after_offset, after_stretch).over(common)
    scene = SceneOptions(
        first, later, align, overlap, batch, streams, threads, cog, min_area=min_area, simplify=simplify,
        engine=engine, force=force, restart=restart,
    )  # fmt: skip
    asked = {"probability": probability, "vector": vector, "quicklook": quicklook}
    products = frozenset(name for name, wanted in asked.items() if wanted)
    options = SeriesOptions(scene, products, consecutive, features, discard_features)
    with _bar() as progress:
        listener = Listener(_tell, lambda path, report: _say(*report.lines(path)), progress)
        run_series(bundle, reference, dates, output, options, listener)


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.progress import Progress as Bar

    with Bar(console=err_console, transient=True) as bar:
        task = bar.add_task("rows of tiles", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _say(*lines: str) -> None:
    for line in lines:
        out_console.print(line, soft_wrap=True, highlight=False, markup=False)


def _tell(line: str) -> None:
    err_console.print(line, soft_wrap=True, highlight=False, markup=False)


COMMANDS: tuple[Callable[..., None], ...] = (encode, series)
