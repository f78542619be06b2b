"""The ``misgnet-export inspect`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misgnet_runtime.cli.app import out_console
from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.errors import InputError, UnavailableError, UsageError
from misgnet_runtime.formatting import printable
from misgnet_runtime.log import current
from misgnet_runtime.storage.atomic import refuse_existing
from misgnet_runtime.tables import print_table


def inspect(
    bundle: BundlePath,
    *,
    picture: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Draw the precision of each graph to this .png or .svg (default: none).",
        ),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Also list the placement rules that applied, with their sources.")
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Show the kernels of the TensorRT plans instead, and the bytes that they move."),
    ] = False,
    config: Annotated[
        bool,
        typer.Option("--config", help="Print the options of the build instead, for `misgnet-export build --config`."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing picture.")] = False,
) -> None:
    """Show the precision (INT8, FP16, FP32) of each graph by block, as shares of its MACs, and the reasons."""
    from misgnet_export.report.precision import block_table, draw_precision, rule_table, share_table
    from misgnet_runtime.bundle import read_bundle
    from misgnet_runtime.cli.info import model_lines

    if plan or config:
        if picture is not None or why or (plan and config):
            raise UsageError("--plan and --config are shown alone, without --output and --why; give one in a call")
        _show_plans(bundle) if plan else _show_config(bundle)
        return
    if picture is not None:
        _check_picture(picture, force)
    manifest = read_bundle(bundle).manifest
    quantizations = [q for q in manifest.quantization if q.placement]
    if not quantizations:
        raise InputError(f"bundle {bundle} does not record the precision of its operators; build it again")
    for line in model_lines(manifest):
        out_console.print(line, soft_wrap=True, markup=False)
    for quantization in quantizations:
        tables = [share_table(quantization), block_table(quantization), *([rule_table(quantization)] if why else [])]
        for table in tables:
            print_table(table)
    if picture is not None:
        draw_precision(quantizations, picture, force=force)
        current().result([f"picture: {picture}"])


def _show_plans(path: Path) -> None:
    from misgnet_export.evidence import decode_plan_record
    from misgnet_export.report.plans import plan_tables
    from misgnet_runtime.bundle import read_bundle

    bundle = read_bundle(path)
    files = [entry.path for entry in bundle.manifest.files if entry.path.startswith("evidence/plan_")]
    if not files:
        raise InputError(
            f"bundle {path} does not record the kernels of a plan: the build compiled none, or an older version built "
            "it; build it again with a target such as rtx-sm86"
        )
    for table in plan_tables([decode_plan_record(file, bundle.read(file)) for file in files]):
        print_table(table)


def _show_config(path: Path) -> None:
    from misgnet_runtime.bundle import read_bundle

    config = read_bundle(path).manifest.config
    if not config:
        raise InputError(f"bundle {path} does not record the options of its build: an older version built it")
    typer.echo("\n".join(map(printable, config.split("\n"))), nl=False)


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
