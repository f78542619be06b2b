"""The ``misgnet-export parity`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from misgnet_runtime.accuracy.limit import requested_limit
from misgnet_runtime.bundle import GateRule
from misgnet_runtime.cli.app import err_console
from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.log import unless_quiet
from misgnet_runtime.storage.atomic import refuse_existing
from misgnet_runtime.tables import print_table

_PROXY_HELP = "Count an engine that passes only by proxy as passed in the JUnit report (default: as skipped)."


def parity(
    bundle: BundlePath,
    *,
    evaluation: Annotated[
        Path, typer.Option("--eval", help="Folder with A/, B/ and label/ that the engines are evaluated on.")
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the evidence to this JSON file (default: none).")
    ] = None,
    junit_file: Annotated[
        Path | None, typer.Option("--junit", help="Write a JUnit report for CI to this file (default: none).")
    ] = None,
    min_f1_ratio: Annotated[
        float | None,
        typer.Option(help="Smallest F1 of an engine as a share of the float model's (default: the bundle's limit)."),
    ] = None,
    max_f1_drop: Annotated[
        float | None,
        typer.Option(help="Allowed F1 drop in points, instead of --min-f1-ratio (default: the bundle's limit)."),
    ] = None,
    gate: Annotated[
        Optional[GateRule],  # noqa: UP045
        typer.Option(help="Gate rule, point or upper, as for build (default: the rule recorded in the bundle)."),
    ] = None,
    accept_proxy: Annotated[bool, typer.Option("--accept-proxy", help=_PROXY_HELP)] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing output files.")] = False,
) -> None:
    """Evaluate the engines of an existing bundle against its float graph again; needs no torch."""
    from misgnet_export.pipeline.reparity import reparity, write_results
    from misgnet_export.report import parity_table

    limit = requested_limit(max_f1_drop, min_f1_ratio)
    outputs = [path for path in (json_file, junit_file) if path is not None]
    for path in outputs:
        refuse_existing(path, force)
    result = reparity(bundle, evaluation, limit, gate, unless_quiet(err_console))
    write_results(result, json_file, junit_file, accept_proxy=accept_proxy, force=force)
    print_table(parity_table(result))
    if not result.passed:
        raise GateFailed(result.failures)
