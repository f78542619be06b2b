"""Makes a build's request and context for tests of single stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.request import BuildRequest, with_interface
from misgnet_export.sources.declaration import Declaration
from misgnet_export.sources.float_model import FloatModel, Source
from misgnet_runtime.bundle import Interface, ModelEntry
from misgnet_runtime.bundle.targets import parse_target
from misgnet_runtime.raster.dataset import Tile


@dataclass(frozen=True, kw_only=True)
class FakeSource(Source):
    """A network that nothing is known of but its declaration."""

    entry: ModelEntry = ModelEntry(source="misgnet", name="fake")  # noqa: RUF009 - immutable
    sha256: str = "0" * 64
    declaration: Declaration = Declaration(multiple=32)  # noqa: RUF009 - immutable

    def float_model(self, interface: Interface) -> FloatModel:
        def unknown(*_: object) -> NoReturn:
            raise AssertionError("a test must replace what runs the network")

        return FloatModel(interface=interface, export=unknown, predict=unknown, reference="fake")


def request_of(*targets: str, **options: Any) -> BuildRequest:
    """Makes a request for ``targets`` with paths that do not exist, tiles of 32 px and batches of up to 4."""
    paths = {"source": "w", "calib": Path("c"), "evaluation": Path("e"), "output": Path("out")}
    parsed = tuple(map(parse_target, targets))
    return BuildRequest(**{**paths, "requested": parsed, "tile": 32, "max_batch": 4, **options})


def context_of(
    request: BuildRequest, root: Path = Path("nowhere"), check_tiles: Iterable[Tile] = (), log: StageLog | None = None
) -> BuildContext:
    log = log or StageLog(Console(quiet=True))
    return BuildContext(
        request=request, root=root, log=log, policy=request.policy, interface=interface_of(request),
        entry=FakeSource().entry, check_tiles=tuple(check_tiles), known=MISGNET,
    )  # fmt: skip


def interface_of(request: BuildRequest) -> Interface:
    """Returns the interface of a MISGNet's engines."""
    return with_interface(request, FakeSource())[1]
