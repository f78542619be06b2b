"""``misgnet-export wheelhouse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from misgnet_export.integrations.wheelhouse import PlatformName
from misgnet_runtime.log import current


def wheelhouse(
    *,
    platform: Annotated[PlatformName, typer.Option(help="the machine that installs from it")],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-o", "--output", help="its folder, which is filled further [default: wheelhouse-PLATFORM]"),
    ] = None,
    project: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="a checkout of this project, or its Git address [default: the one that runs]"),
    ] = None,
) -> None:
    """A folder of wheels for a machine without a network, and the list of them with the lines that install it."""
    from misgnet_export.integrations.wheelhouse import LIST, fill_wheelhouse, install_lines

    folder = output or Path(f"wheelhouse-{platform}")
    fill_wheelhouse(platform, folder, project, current().info)
    lines = [f"{len(list(folder.glob('*.whl')))} wheels and {LIST} in {folder}; there:", *install_lines(platform)]
    current().result(lines)
