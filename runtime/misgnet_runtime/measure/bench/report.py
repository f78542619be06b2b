"""What a benchmark found: all of it as JSON, and the comparisons that are drawn from it."""

from __future__ import annotations

from typing import Any

from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.measure.bench.matrix import NotRun, RunsHere
from misgnet_runtime.measure.sensors.clocks import DeviceState
from misgnet_runtime.storage.schema import Struct


class Settings(Struct, frozen=True):
    """Seconds of each engine at each setting, in so many rounds, and the most seconds of warm-up before them."""

    seconds: float
    rounds: int
    warm_up: float
    threads: int


class Power(Struct, frozen=True):
    """What measured power, and why the rest did not."""

    meters: list[str]
    missing: list[str]


class SceneFigure(Struct, frozen=True):
    """A run of ``predict`` on a pair of GeoTIFFs, and its speed as a ``share`` of what its engine can.

    ``seconds``: from the first tile read to the last row written; ``engine_pairs_per_second``: of the same engine,
    batch and streams in the rounds before.
    """

    engine: str
    batch: int
    streams: int
    tiles: int
    seconds: float
    tiles_per_second: float
    engine_pairs_per_second: float
    share: float


class Conditions(Struct, frozen=True):
    """The machine before the first engine is opened and after everything, and the power modes of a Jetson then.

    ``during``: while engines were measured, warm-up included: median clocks and highest temperatures.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    power_modes: tuple[str | None, str | None]
    before: DeviceState
    during: DeviceState
    after: DeviceState


class BenchReport(Struct, frozen=True):
    """``created``: ISO 8601, UTC; ``bundle_sha256``: of the manifest, which states every file's digest.

    ``ratios``: pairs a second of each timing over those of the engine ``reference`` at the same batch and streams.
    ``matrix_product``: a plain one, timed in the rounds of batch 1 and one stream, for about as long as a call there.
    """

    created: str
    bundle: str
    bundle_version: int
    bundle_sha256: str
    settings: Settings
    engines: list[RunsHere]
    not_run: list[NotRun]
    timings: list[Timing]
    reference: str
    ratios: list[float]
    power: Power
    conditions: Conditions
    scene: SceneFigure | None
    warnings: list[str]
    matrix_product: Timing | None = None


def choose_reference(timings: list[Timing]) -> str:
    """The engine that others are compared with: the first in float32, or else the first."""
    floats = [timing.engine for timing in timings if timing.precision == "float32"]
    return (floats or [timings[0].engine])[0]


def ratios_to(reference: str, timings: list[Timing]) -> list[float]:
    """One for each timing, see :class:`BenchReport`."""
    base = {(t.batch, t.streams): t.pairs_per_second for t in timings if t.engine == reference}
    return [t.pairs_per_second / base[t.batch, t.streams] for t in timings]


def fastest(timings: list[Timing]) -> Timing:
    """The one with the most pairs a second."""
    return max(timings, key=lambda timing: timing.pairs_per_second)
