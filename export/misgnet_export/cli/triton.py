"""``misgnet-export triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.log import current


def triton(
    bundle: BundlePath,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="the model repository, a folder")],
    engine: Annotated[list[str] | None, typer.Option(help="may be repeated; without it all that fit")] = None,
    instances: Annotated[int | None, typer.Option(help="of each engine; on a GPU 2 without, on a CPU 1")] = None,
    queue_delay: Annotated[int, typer.Option(help="µs that a request waits for others to share a batch")] = 2000,
    force: Annotated[bool, typer.Option("--force", help="replace an existing repository")] = False,
) -> None:
    """The bundle's engines as a model repository for the Triton Inference Server."""
    from misgnet_export.integrations.triton.config import Serving
    from misgnet_export.integrations.triton.repository import write_repository

    written = write_repository(bundle, output, engine or [], Serving(instances, queue_delay), force=force)
    for name, why in written.left_out.items():
        current().info(f"left out: {name}: {why}")
    notes = (f"; {model.note}" if model.note else "" for model in written.models)
    lines = [f"{model.name}: backend {model.backend}{note}" for model, note in zip(written.models, notes, strict=True)]
    current().result([*lines, f"repository: {output}"])
