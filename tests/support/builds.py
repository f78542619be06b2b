"""Makes a build's request and context for tests of single stages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.request import BuildRequest
from misgnet_runtime.bundle import Interface
from misgnet_runtime.bundle.targets import parse_target
from misgnet_runtime.raster.dataset import Tile


def request_of(*targets: str, **options: Any) -> BuildRequest:
    """Makes a request for ``targets`` with paths that do not exist, tiles of 32 px and batches of up to 4."""
    paths = {"source": "w", "calib": Path("c"), "evaluation": Path("e"), "output": Path("out")}
    parsed = tuple(map(parse_target, targets))
    return BuildRequest(**{**paths, "requested": parsed, "tile": 32, "max_batch": 4, **options})


def context_of(
    request: BuildRequest, root: Path = Path("nowhere"), check_tiles: Iterable[Tile] = (), log: StageLog | None = None
) -> BuildContext:
    log = log or StageLog(Console(quiet=True))
    assert isinstance(request.tile, int)
    interface = Interface(request.tile, request.max_batch, request.input_form, request.output_form)
    return BuildContext(request, root, log, request.policy, interface, tuple(check_tiles))
