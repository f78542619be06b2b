"""The ``misgnet-export wheelhouse`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from misgnet_export.integrations.wheelhouse import PlatformName
from misgnet_runtime.formatting import plural
from misgnet_runtime.log import current


def wheelhouse(
    *,
    platform: Annotated[PlatformName, typer.Option(help="Machine to collect wheels for.")],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "-o", "--output", help="Folder to write to; wheels in it are kept (default: wheelhouse-PLATFORM)."
        ),
    ] = None,
    project: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Checkout of this project or its Git address (default: the checkout that this command runs from)."
        ),
    ] = None,
) -> None:
    """Collect all wheels that a machine without a network needs, with a requirements list and install commands."""
    from misgnet_export.integrations.wheelhouse import LIST, fill_wheelhouse, install_lines

    folder = output or Path(f"wheelhouse-{platform}")
    fill_wheelhouse(platform, folder, project, current().info)
    found = list(folder.glob("*.whl"))
    lines = [f"{plural(len(found), 'wheel')} and {LIST} in {folder}; install there with:", *install_lines(platform)]
    current().result(lines)
