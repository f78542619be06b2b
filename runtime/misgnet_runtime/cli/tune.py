"""``misgnet-run tune``. Cheap to import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from misgnet_runtime.log import current, is_json, out_console

_OptionalPath = Optional[Path]  # noqa: UP045 - typer on 3.10
_Names = Optional[list[str]]  # noqa: UP045


def tune(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    *,
    engine: Annotated[
        _Names, typer.Option("--engine", help="an engine, repeated for more", show_default="all that run here")
    ] = None,
    minutes: Annotated[float, typer.Option(help="for each engine, about")] = 3.0,
    json_file: Annotated[_OptionalPath, typer.Option("--json", help="write all that was tried as JSON")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an existing JSON file")] = False,
) -> None:
    """Measure how each engine uses this machine best, for one pair at a time and for many, and keep it.

    What is found is kept outside the bundle ($MISGNET_CACHE, else misgnet in the user's cache) for this bundle, engine,
    machine and version of the library. All commands but verify and bench use it; --no-tuned, --threads, --streams
    and --batch come first. A setting is taken where it is faster by more than the rounds spread and answers as before.
    """
    from msgspec.structs import asdict

    from misgnet_runtime.cli.tune_tables import lines, table
    from misgnet_runtime.measure.tune import tune_bundle
    from misgnet_runtime.storage.atomic import refuse_existing, write_file
    from misgnet_runtime.storage.schema import encode

    if json_file is not None:
        refuse_existing(json_file, force)
    report = tune_bundle(bundle, tuple(engine or ()), minutes, current())
    if json_file is not None:
        write_file(json_file, encode(report), force=force)
    if not is_json():
        for tuning in report.tunings:
            out_console.print(table(tuning))
    current().result(list(lines(report)), **asdict(report))
