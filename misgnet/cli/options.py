"""Options that several commands share, and the check for PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TaskID

from misgnet_runtime.cli.app import err_console
from misgnet_runtime.errors import UnavailableError, UsageError

Weights = Annotated[Path, typer.Argument(help="checkpoint: safetensors or any published MISGNet file")]
Output = Annotated[Path, typer.Option("-o", "--output", help="where the result goes")]
Force = Annotated[bool, typer.Option("--force", help="replace an existing result")]
TileSide = Annotated[int, typer.Option("--tile", help="side of a tile in pixels, a multiple of 32")]
Batch = Annotated[int, typer.Option("--batch", help="tiles a step")]
Threshold = Annotated[float, typer.Option("--threshold", help="probability above which a pixel is changed")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N")]


def need_torch() -> None:
    """UnavailableError, with the install line, where PyTorch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            "this command needs PyTorch; install it with: pip install 'misgnet-export[train]'"
        ) from error


def check_numbers(tile: int, batch: int, threshold: float) -> None:
    """UsageError for a tile that the network does not take, an empty batch, or a threshold that is no probability."""
    if tile < 32 or tile % 32:
        raise UsageError(f"--tile is {tile}; the network takes multiples of 32")
    if batch < 1:
        raise UsageError(f"--batch is {batch}; it must be 1 or more")
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold is {threshold}; a probability is 0 to 1")


class Bar(Progress):
    """A bar on stderr that a stage's ``progress(done, of)`` moves."""

    def __init__(self, name: str) -> None:
        super().__init__(console=err_console, transient=True)
        self._bar: TaskID = self.add_task(name, total=None)

    def move(self, done: int, of: int) -> None:
        self.update(self._bar, completed=done, total=of)
