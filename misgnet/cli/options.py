"""Defines options that several ``misgnet`` commands share, and checks for PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TaskID

from misgnet_runtime.bars import Bars
from misgnet_runtime.cli.app import err_console
from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.log import unless_quiet

Weights = Annotated[Path, typer.Argument(help="Checkpoint: safetensors or any published MISGNet file.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="PATH", help="Path of the result.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing result.")]
TileSide = Annotated[int, typer.Option("--tile", help="Side of a tile in pixels; a multiple of 32.")]
Batch = Annotated[int, typer.Option("--batch", help="Tiles per inference call.")]
Threshold = Annotated[float, typer.Option("--threshold", help="A pixel above this probability (0 to 1) is changed.")]
Device = Annotated[
    str, typer.Option("--device", help="PyTorch device: auto, cpu, cuda or cuda:N. auto uses CUDA if available.")
]


def need_torch() -> None:
    """Raises UnavailableError with the install command if PyTorch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UnavailableError("this command requires PyTorch: pip install 'misgnet-export[train]'") from error


def check_numbers(tile: int, batch: int, threshold: float) -> None:
    """Raises UsageError for a tile size that the network does not support, or an invalid batch size or threshold."""
    if tile < 32 or tile % 32:
        raise UsageError(f"--tile is {tile}; it must be a multiple of 32")
    if batch < 1:
        raise UsageError(f"--batch is {batch}; it must be 1 or more")
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold is {threshold}; it must be from 0 to 1")


class Bar(Bars):
    """A progress bar on stderr, if that is a terminal; pass its ``move`` as a function's ``progress`` callback."""

    def __init__(self, name: str) -> None:
        super().__init__(console=unless_quiet(err_console), transient=True)
        self._bar: TaskID = self.add_task(name, total=None)

    def move(self, done: int, of: int) -> None:
        self.update(self._bar, completed=done, total=of)
