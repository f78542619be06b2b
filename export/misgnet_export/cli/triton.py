"""The ``misgnet-export triton`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misgnet_runtime.cli.completion import engine_names
from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.log import current


def triton(
    bundle: BundlePath,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Output folder of the model repository.")],
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Engine to export; may be repeated (default: all engines that Triton can run).",
            autocompletion=engine_names,
        ),
    ] = None,
    instances: Annotated[
        int | None, typer.Option(help="Instances of each model (default: 2 on a GPU, 1 on a CPU).")
    ] = None,
    queue_delay: Annotated[
        int, typer.Option(help="Longest time in µs that a request waits for others to fill a batch.")
    ] = 2000,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing repository.")] = False,
) -> None:
    """Write the engines of a bundle as a model repository for the Triton Inference Server."""
    from misgnet_export.integrations.triton.config import Serving
    from misgnet_export.integrations.triton.repository import write_repository

    written = write_repository(bundle, output, engine or [], Serving(instances, queue_delay), force=force)
    for name, why in written.left_out.items():
        current().info(f"left out: {name}: {why}")
    notes = (f"; {model.note}" if model.note else "" for model in written.models)
    lines = [f"{model.name}: backend {model.backend}{note}" for model, note in zip(written.models, notes, strict=True)]
    current().result([*lines, f"repository: {output}"])
