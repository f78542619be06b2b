"""What was measured, as frozen values that are kept as JSON."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import field

from misgnet_runtime.accuracy.gate import Interval
from misgnet_runtime.storage.schema import Struct

# Who made what is run: this project, or anybody else.
Side = Literal["peer", "ours"]
Kind = Literal["float32", "int8"]


class Setting(Struct, frozen=True):
    """So many batches at once, each of so many pairs."""

    streams: int
    batch: int


class Latency(Struct, frozen=True):
    """Milliseconds of single calls, one at a time; ``lowest`` and ``highest``: p50 of a round."""

    p50_ms: float
    p99_ms: float
    lowest: float
    highest: float
    calls: int

    @property
    def jitter(self) -> float:
        return self.p99_ms / self.p50_ms


class Tried(Struct, frozen=True):
    """A setting that was tried before the rounds, and pairs a second at it."""

    setting: Setting
    pairs_per_second: float


class Throughput(Struct, frozen=True):
    """Pairs a second at the best of the settings that were tried: median, lowest and highest round."""

    setting: Setting
    median: float
    lowest: float
    highest: float
    rounds: list[float]
    tried: list[Tried]


class Row(Struct, frozen=True):
    """One graph, or the network, in one engine.

    ``failed``: why there are no figures; ``notes``: what they must be read with. ``to_best_peer``, ``to_eager``: its
    throughput as a multiple of theirs; ``of_float32_peak``, ``of_int8_peak``: what it computes of a pair's work in a
    second, as a fraction of the machine's matrix peaks.
    """

    key: str
    title: str
    engine: str
    side: Side
    precision: str = ""
    failed: str = ""
    notes: list[str] = field(default_factory=list)
    f1: float | None = None
    drop_points: float | None = None
    interval: Interval | None = None
    agreement: float | None = None
    latency: Latency | None = None
    throughput: Throughput | None = None
    to_best_peer: float | None = None
    to_eager: float | None = None
    of_float32_peak: float | None = None
    of_int8_peak: float | None = None
    peak_mib: float | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Title and engine, as people say it."""
        engine = f"{self.engine}, {self.precision}" if self.precision else self.engine
        return self.title if self.title.startswith(self.engine) else f"{self.title} in {engine}"


class Absent(Struct, frozen=True):
    """Who has no row, and why."""

    title: str
    reason: str


class Peak(Struct, frozen=True):
    """The rate of a plain matrix product, in operations a second (a multiply-add is two): of rounds' best calls."""

    kind: Kind
    library: str
    rows: int
    median: float
    lowest: float
    highest: float
    failed: str = ""


class Work(Struct, frozen=True):
    """Multiply-adds of one pair in the straight export: with constant weights, and between activations."""

    weights: int
    activations: int

    @property
    def operations(self) -> int:
        return 2 * (self.weights + self.activations)


class Target(Struct, frozen=True):
    """What was asked of this project, what was found, and whether that reaches it; None where it was not measured."""

    name: str
    asked: str
    found: str
    reached: bool | None


class Report(Struct, frozen=True):
    """All rows with what they were measured on; ``matrix_product``: timed in the same loop as single calls."""

    created: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    sets: dict[str, Any]
    bundle_sha256: str
    weights_sha256: str
    work: Work
    rows: list[Row]
    absent: list[Absent]
    matrix_product: Latency | None
    peaks: list[Peak]
    targets: list[Target]
    load_before: float
    load_after: float
