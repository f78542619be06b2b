"""What the stages of a build have made so far: frozen values that pass from one to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from misgnet_calibration.statistics.tile_selection import Selection
from misgnet_export.evidence import ControlRecord, TilePicture
from misgnet_export.pipeline.agreement import Answers
from misgnet_runtime.accuracy.parity import ParityReport
from misgnet_runtime.bundle import EngineEntry, Quantization, SplitEntry, TensorEntry
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.raster.dataset import TileSet

FLOAT_ENGINE = "cpu-float32"
FLOAT_GRAPH = "graphs/float.onnx"


@dataclass(frozen=True, kw_only=True)
class Sets:
    """What a build read: three different sets, which calibrate, validate (may be missing) and evaluate, and weights.

    ``decision``: the validation tiles that quantization is decided on; ``chosen``: how the calibration tiles were
    chosen, in words; ``weights_sha256``: of the bytes that the network was decoded from; ``selection``: why each
    calibration tile was chosen, where they represent a larger set.
    """

    calib: TileSet
    val: TileSet | None
    decision: TileSet | None
    evaluation: TileSet
    chosen: str
    weights_sha256: str
    selection: Selection | None = None


@dataclass(frozen=True)
class FloatGraph:
    """A float graph, and its output on the tiles that every stage is checked on."""

    model: onnx.ModelProto
    answers: Answers


@dataclass(frozen=True)
class Tuned:
    """A threshold, F1 with it and with 0.5, both 0 to 1, and on how many tiles."""

    threshold: float
    f1: float
    f1_at_half: float
    tiles: int

    def __str__(self) -> str:
        return f"{self.threshold:g} on {self.tiles} validation tiles: F1 {self.f1:.4f}, {self.f1_at_half:.4f} with 0.5"


def lowest(precision: str) -> str:
    """What a graph is called after: "int8" of "int8+float16"."""
    return precision.partition("+")[0]


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """A graph in the bundle, and what was decided for it where it is INT8 or float16.

    ``split``: its encoder and head, where there are any; ``features``: what the encoder answers.
    """

    name: str
    file: str
    precision: str
    size: int
    quantization: Quantization | None = None
    control: ControlRecord | None = None
    split: SplitEntry | None = None
    features: list[TensorEntry] = field(default_factory=list)


@dataclass(frozen=True)
class WrittenGraph:
    """A graph that was just written to its file, and still is in memory."""

    file: GraphFile
    model: onnx.ModelProto


@dataclass(frozen=True)
class Evidence:
    """What was measured: parity, pictures by engine; timings only of what passed."""

    parity: ParityReport
    pictures: Mapping[str, list[TilePicture]]
    timings: list[Timing] = field(default_factory=list)


@dataclass(frozen=True)
class Draft:
    """A bundle before its manifest is written; ``tuned``: its threshold, where it was not given."""

    sets: Sets
    graphs: list[GraphFile]
    engines: list[EngineEntry]
    evidence: Evidence
    tuned: Tuned | None = None
