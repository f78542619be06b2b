"""The ``misgnet-export inspect`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misgnet_runtime.cli.app import out_console
from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.errors import InputError, UnavailableError, UsageError
from misgnet_runtime.log import current
from misgnet_runtime.storage.atomic import refuse_existing


def inspect(
    bundle: BundlePath,
    *,
    picture: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Draw the precision of each graph to this .png or .svg (default: none)."),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Also list the placement rules that applied, with their sources.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing picture.")] = False,
) -> None:
    """Show the precision (INT8, FP16, FP32) of each graph by block, as shares of its MACs, and the reasons."""
    from misgnet_export.report.precision import block_table, draw_precision, rule_table, share_table
    from misgnet_runtime.bundle import read_bundle

    if picture is not None:
        _check_picture(picture, force)
    quantizations = [q for q in read_bundle(bundle).manifest.quantization if q.placement]
    if not quantizations:
        raise InputError(f"bundle {bundle} does not record the precision of its operators; build it again")
    for quantization in quantizations:
        tables = [share_table(quantization), block_table(quantization), *([rule_table(quantization)] if why else [])]
        for table in tables:
            out_console.print(table)
    if picture is not None:
        draw_precision(quantizations, picture, force=force)
        current().result([f"picture: {picture}"])


def _check_picture(path: Path, force: bool) -> None:
    if path.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"--output is {path}; its name must end in .png or .svg")
    refuse_existing(path, force)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            "`misgnet-export inspect --output` requires matplotlib: pip install matplotlib"
        ) from error
