"""Defines the results of a build's stages: immutable values that later stages read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from misgnet_calibration.quantizer.recipes import Recipe
from misgnet_calibration.statistics.tile_selection import Selection
from misgnet_export.evidence import ControlRecord, TilePicture
from misgnet_export.pipeline.agreement import Predictions
from misgnet_export.sources.float_model import Source
from misgnet_runtime.accuracy.parity import ParityReport
from misgnet_runtime.bundle import (
    EngineEntry,
    Interface,
    MeasuredOverlap,
    MeasuredTile,
    Quantization,
    SplitEntry,
    TensorEntry,
)
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.raster.dataset import TileSet

FLOAT_ENGINE = "cpu-float32"
FLOAT_GRAPH = "graphs/float.onnx"


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Three disjoint sets of tiles."""

    calib: TileSet  # the selected calibration tiles
    val: TileSet | None
    decision: TileSet | None  # the validation tiles that quantization is decided on
    evaluation: TileSet
    chosen: str  # how the calibration tiles were selected
    selection: Selection | None = None  # why each tile was selected, if they represent a larger set


@dataclass(frozen=True)
class FloatGraph:
    """A float graph and its predictions on the check tiles."""

    model: onnx.ModelProto
    predictions: Predictions
    for_gpu: FloatGraph | None = None  # the same network as TensorRT compiles it; None if no target needs it

    def of(self, recipe: Recipe) -> FloatGraph:
        """Returns the graph that ``recipe`` quantizes. TensorRT's recipes are those with float16."""
        return self.for_gpu if recipe.float16 and self.for_gpu is not None else self


@dataclass(frozen=True)
class Tuned:
    """A tuned threshold."""

    threshold: float
    f1: float  # 0 to 1, with this threshold
    f1_at_half: float  # 0 to 1, with a threshold of 0.5
    tiles: int  # number of validation tiles

    def __str__(self) -> str:
        tiles = plural(self.tiles, "validation tile")
        return f"{self.threshold:g} on {tiles}: F1 {self.f1:.4f}, {self.f1_at_half:.4f} with 0.5"


@dataclass(frozen=True)
class ChosenOverlap:
    """The overlap of a scene's tiles."""

    overlap: int  # pixels that neighbouring tiles share
    reason: str  # how it was chosen
    measured: list[MeasuredOverlap] = field(default_factory=list)  # by ascending overlap; empty: nothing was measured

    def finding(self, tile: int) -> str:
        """Returns the chosen measurement beside that of a quarter of a tile."""
        chosen, quarter = (
            next(one for one in self.measured if one.overlap == overlap) for overlap in (self.overlap, tile // 4)
        )
        scores = [] if chosen.f1 is None or quarter.f1 is None else [f"F1 {chosen.f1:.4f} ({quarter.f1:.4f})"]
        seams = f"seam agreement {100 * chosen.seam_agreement:.2f} % ({100 * quarter.seam_agreement:.2f} %)"
        times = f"each pixel {chosen.times_computed:.2f} times ({quarter.times_computed:.2f})"
        return f"{self.overlap} px (in brackets: {quarter.overlap} px): " + ", ".join([*scores, seams, times])


@dataclass(frozen=True)
class ChosenTile:
    """The tile size that ``--tile auto`` stands for."""

    tile: int  # pixels
    reason: str  # how it was chosen
    measured: list[MeasuredTile]  # by ascending size


def lowest(precision: str) -> str:
    """Returns the lowest precision, after which a graph is named: "int8" of "int8+float16"."""
    return precision.partition("+")[0]


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """A graph in the bundle, and the decisions behind it if it is INT8 or float16."""

    name: str
    file: str
    precision: str
    size: int
    quantization: Quantization | None = None
    control: ControlRecord | None = None
    split: SplitEntry | None = None  # its encoder and head
    features: list[TensorEntry] = field(default_factory=list)  # outputs of the encoder


@dataclass(frozen=True)
class WrittenGraph:
    """A graph that was written to its file and is still in memory."""

    file: GraphFile
    model: onnx.ModelProto


@dataclass(frozen=True)
class Evidence:
    """The measurements of a build."""

    parity: ParityReport
    pictures: Mapping[str, list[TilePicture]]  # by engine
    timings: list[Timing] = field(default_factory=list)  # empty if the gate failed
    warnings: list[str] = field(default_factory=list)  # signs that the network was declared wrongly


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A bundle before its manifest is written."""

    source: Source
    interface: Interface
    sets: Sets
    graphs: list[GraphFile]
    engines: list[EngineEntry]
    evidence: Evidence
    tuned: Tuned | None = None  # the tuned threshold; None if a value was given
    dropped: list[GraphFile] = field(default_factory=list)  # graphs of left out engines, whose files were removed
    overlap: ChosenOverlap | None = None  # None if the gate failed
    tile: ChosenTile | None = None  # None if its size was given
