"""Defines the inputs of every stage of a build: the request, the bundle's folder, the log and the accuracy policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from misgnet_calibration.quantizer.known_modules import UNKNOWN, KnownModules
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.request import AccuracyPolicy, BuildRequest
from misgnet_runtime.bundle import Interface, ModelEntry
from misgnet_runtime.raster.dataset import Tile

CHECK_TILES = 8  # on which every stage's graph is compared with the graph before


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """One build in progress. It is immutable: a stage that decides something returns a changed copy."""

    request: BuildRequest
    root: Path  # folder that the bundle is written to
    log: StageLog
    policy: AccuracyPolicy
    interface: Interface  # inputs and outputs of all engines
    entry: ModelEntry  # the network, as the manifest describes it
    check_tiles: tuple[Tile, ...]  # on which every stage's graph is compared with the graph before
    weights_sha256: str = ""  # of the bytes that the network was decoded from
    known: KnownModules = UNKNOWN  # what placement, float16 and accuracy control may conclude from names of modules

    def with_log(self, log: StageLog) -> BuildContext:
        return replace(self, log=log)

    def with_threshold(self, threshold: float) -> BuildContext:
        return replace(self, policy=replace(self.policy, threshold=threshold))
