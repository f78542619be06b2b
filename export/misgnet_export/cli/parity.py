"""``misgnet-export parity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from misgnet_runtime.bundle import GateRule
from misgnet_runtime.cli.app import err_console, out_console
from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.storage.atomic import refuse_existing

_PROXY_HELP = "in the JUnit report an engine that passes only by proxy counts as passed [default: as skipped]"


def parity(
    bundle: BundlePath,
    *,
    evaluation: Annotated[Path, typer.Option("--eval", help="folder of A/ B/ label/ that judges")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write the evidence as JSON")] = None,
    junit_file: Annotated[Path | None, typer.Option("--junit", help="write a JUnit report for CI")] = None,
    max_f1_drop: Annotated[float | None, typer.Option(help="allowed F1 drop in points [default: the bundle's]")] = None,
    gate: Annotated[
        Optional[GateRule],  # noqa: UP045
        typer.Option(help="point or upper, as for build [default: the bundle's]"),
    ] = None,
    accept_proxy: Annotated[bool, typer.Option("--accept-proxy", help=_PROXY_HELP)] = False,
    force: Annotated[bool, typer.Option("--force", help="replace existing output files")] = False,
) -> None:
    """Prove an existing bundle again, against its own float graph; needs no torch."""
    from misgnet_export.pipeline.reparity import reparity, write_results
    from misgnet_export.report import parity_table

    outputs = [path for path in (json_file, junit_file) if path is not None]
    for path in outputs:
        refuse_existing(path, force)
    result = reparity(bundle, evaluation, max_f1_drop, gate, err_console)
    write_results(result, json_file, junit_file, accept_proxy=accept_proxy, force=force)
    out_console.print(parity_table(result))
    if not result.passed:
        raise GateFailed(result.failures)
