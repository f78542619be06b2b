"""Defines the report of a benchmark, which is written as JSON, and compares timings."""

from __future__ import annotations

from typing import Any

from misgnet_runtime.inference.comparison import NotRun
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.measure.bench.matrix import RunsHere
from misgnet_runtime.measure.sensors.clocks import DeviceState
from misgnet_runtime.storage.schema import Struct


class Settings(Struct, frozen=True):
    """Settings of a benchmark."""

    # Measuring time of each engine at each setting, in all rounds.
    seconds: float
    # Number of rounds that this time is divided into.
    rounds: int
    # Maximum warm-up in seconds.
    warm_up: float
    # CPU threads of each engine.
    threads: int


class Power(Struct, frozen=True):
    """Power meters that were used."""

    # Sources of the measurements: INA3221, NVML or RAPL.
    meters: list[str]
    # Why other meters were unavailable.
    missing: list[str]


class SceneFigure(Struct, frozen=True):
    """Speed of ``predict`` on a pair of GeoTIFFs."""

    engine: str
    # Tiles per inference call.
    batch: int
    # Batches in flight at once.
    streams: int
    # Tiles of the scene.
    tiles: int
    # From the first tile read to the last row written.
    seconds: float
    tiles_per_second: float
    # Speed of the same engine, batch and streams in the benchmark.
    engine_pairs_per_second: float
    # tiles_per_second / engine_pairs_per_second.
    share: float


class Conditions(Struct, frozen=True):
    """The machine and its state during a benchmark."""

    # Processor, cores, memory and, on a Jetson, the model.
    machine: dict[str, Any]
    # Versions of installed packages.
    versions: dict[str, str]
    # Power modes of a Jetson at the start and at the end.
    power_modes: tuple[str | None, str | None]
    # Before the first engine was opened.
    before: DeviceState
    # Median clocks and highest temperatures while engines ran, including warm-up.
    during: DeviceState
    # At the end.
    after: DeviceState


class BenchReport(Struct, frozen=True):
    """Results of a benchmark."""

    # ISO 8601, UTC.
    created: str
    # Name of the bundle.
    bundle: str
    bundle_version: int
    # Digest of the manifest, which states the digest of every file.
    bundle_sha256: str
    settings: Settings
    # Engines that were measured.
    engines: list[RunsHere]
    # Engines that were not measured.
    not_run: list[NotRun]
    # A timing of each engine at each batch and number of streams.
    timings: list[Timing]
    # Engine that the others are compared with.
    reference: str
    # Speed of each timing relative to the reference engine at the same batch and streams.
    ratios: list[float]
    power: Power
    conditions: Conditions
    # Null: no scene was given.
    scene: SceneFigure | None
    # Reasons why the measurements may be unreliable.
    warnings: list[str]
    # A NumPy matrix product of about the duration of one call, timed in the rounds of batch 1 and one stream.
    matrix_product: Timing | None = None


def choose_reference(timings: list[Timing]) -> str:
    """Returns the engine that others are compared with: the first float32 engine, or the first one."""
    floats = [timing.engine for timing in timings if timing.precision == "float32"]
    return (floats or [timings[0].engine])[0]


def ratios_to(reference: str, timings: list[Timing]) -> list[float]:
    """Returns the ratio of each timing; see :class:`BenchReport`."""
    base = {(t.batch, t.streams): t.pairs_per_second for t in timings if t.engine == reference}
    return [t.pairs_per_second / base[t.batch, t.streams] for t in timings]


def fastest(timings: list[Timing]) -> Timing:
    """Returns the timing with the most pairs/s."""
    return max(timings, key=lambda timing: timing.pairs_per_second)
