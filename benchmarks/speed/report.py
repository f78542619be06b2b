"""Defines the report of the speed benchmark, which is written as JSON."""

from __future__ import annotations

import statistics
from typing import Any, Literal

from msgspec import field

from misgnet_runtime.accuracy.gate import Interval
from misgnet_runtime.storage.schema import Struct

# Maker of the graph: this project, or a peer.
Side = Literal["peer", "ours"]
Kind = Literal["float32", "int8"]


class Setting(Struct, frozen=True):
    """Number of batches in flight, and pairs per batch."""

    streams: int
    batch: int


class Latency(Struct, frozen=True):
    """Latency of single calls."""

    p50_ms: float
    p99_ms: float
    # Lowest and highest p50 of a round, in milliseconds.
    lowest: float
    highest: float
    calls: int

    @property
    def jitter(self) -> float:
        return self.p99_ms / self.p50_ms


class Tried(Struct, frozen=True):
    """A setting that was tried before the rounds, and its speed."""

    setting: Setting
    pairs_per_second: float


class Throughput(Struct, frozen=True):
    """Throughput at the best of the settings that were tried."""

    setting: Setting
    # Pairs/s of the rounds.
    median: float
    lowest: float
    highest: float
    rounds: list[float]
    tried: list[Tried]


class Row(Struct, frozen=True):
    """One graph, or the network, in one engine."""

    key: str
    title: str
    engine: str
    side: Side
    precision: str = ""
    # Why there are no figures.
    failed: str = ""
    # Remarks on the figures.
    notes: list[str] = field(default_factory=list)
    f1: float | None = None
    drop_points: float | None = None
    # F1 divided by that of the reference.
    f1_ratio: float | None = None
    interval: Interval | None = None
    agreement: float | None = None
    latency: Latency | None = None
    throughput: Throughput | None = None
    # Throughput relative to the best peer and to PyTorch eager.
    to_best_peer: float | None = None
    to_eager: float | None = None
    # Operations/s as a fraction of the machine's matrix peaks.
    of_float32_peak: float | None = None
    of_int8_peak: float | None = None
    peak_mib: float | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Returns title and engine as text."""
        engine = f"{self.engine}, {self.precision}" if self.precision else self.engine
        return self.title if self.title.startswith(self.engine) else f"{self.title} in {engine}"


class Absent(Struct, frozen=True):
    """A contender without a row, and why."""

    title: str
    reason: str


class Peak(Struct, frozen=True):
    """Rate of a matrix product: operations/s of the best call of each round. A MAC counts as two operations."""

    kind: Kind
    library: str
    # Rows of the square matrices.
    rows: int
    median: float
    lowest: float
    highest: float
    # Why it could not be measured.
    failed: str = ""


class Work(Struct, frozen=True):
    """MACs of one pair in the straight export."""

    # MACs of products with constant weights.
    weights: int
    # MACs of products of two activations.
    activations: int

    @property
    def operations(self) -> int:
        return 2 * (self.weights + self.activations)


class SceneRound(Struct, frozen=True):
    """One run of a command on a pair of scenes, and the speed of its engine alone."""

    # From the start of the process to its exit.
    seconds: float
    # From the first pixel read to the last tile computed or row written.
    tile_seconds: float
    tiles: int
    # Pairs/s of the engine alone: the mean of directly before and directly after the run.
    engine_rate: float


class ScenePath(Struct, frozen=True):
    """The whole path from two GeoTIFFs to a mask with one command."""

    title: str
    side: Side
    # Engine and precision.
    engine: str = ""
    # Of the mask of the whole scene.
    f1: float | None = None
    rounds: list[SceneRound] = field(default_factory=list)
    # Why there are no figures.
    failed: str = ""

    @property
    def seconds(self) -> float:
        """Returns the median time from the start of the process to its exit."""
        return statistics.median(one.seconds for one in self.rounds)

    @property
    def outside(self) -> float:
        """Returns the median time of a run outside the computing of tiles, in seconds: its start and its end."""
        return statistics.median(one.seconds - one.tile_seconds for one in self.rounds)

    @property
    def tile_rate(self) -> float:
        """Returns the median tiles/s."""
        return statistics.median(one.tiles / one.tile_seconds for one in self.rounds)

    @property
    def engine_rate(self) -> float:
        """Returns the median pairs/s of the engine alone."""
        return statistics.median(one.engine_rate for one in self.rounds)

    @property
    def share(self) -> float:
        """Returns the median share of the engine's own rate that the run reaches while it computes tiles."""
        return statistics.median(one.tiles / one.tile_seconds / one.engine_rate for one in self.rounds)


class Scene(Struct, frozen=True):
    """A pair of square scenes, and the commands that were run on it in alternating rounds."""

    # Side in pixels.
    pixels: int
    paths: list[ScenePath]

    def speeds(self, path: ScenePath) -> list[float]:
        """Returns the Mpixel/s of each round, from the start of the process to its exit."""
        return [self.pixels**2 / 1e6 / one.seconds for one in path.rounds]

    def path_of(self, side: Side) -> ScenePath | None:
        """Returns the path of a side if it was measured."""
        return next((path for path in self.paths if path.side == side and path.rounds), None)


class Target(Struct, frozen=True):
    """A speed target of this project."""

    name: str
    # The required value.
    asked: str
    # The measured value.
    found: str
    # None if it was not measured.
    reached: bool | None
    # Whether the stretch goal was reached, too.
    stretch: bool = False


class Report(Struct, frozen=True):
    """All rows, and the conditions of the measurement."""

    created: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    sets: dict[str, Any]
    bundle_sha256: str
    weights_sha256: str
    work: Work
    rows: list[Row]
    absent: list[Absent]
    # Timed in the same rounds as single calls.
    matrix_product: Latency | None
    peaks: list[Peak]
    # None if it was left out.
    scene: Scene | None
    targets: list[Target]
    load_before: float
    load_after: float
