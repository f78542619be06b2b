"""Defines the record of one run: what was tried, with which outcome, and every figure; README.md explains it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.storage.schema import Count, Fraction, Struct

SCHEMA_VERSION = 1
Outcome = Literal["passed", "failed", "not supported", "out of time", "not run"]
PartName = Literal["driver", "engines", "network"]
Form = Literal["original", "stacked"]
Mode = Literal["eager", "graph", "compile", "compile and graph"]
Scope = Literal["whole", "backbone", "guidance", "decoder"]
PARTS: tuple[PartName, ...] = ("driver", "engines", "network")


class Step(Struct, frozen=True, kw_only=True):
    """One thing that the kit tried."""

    part: PartName
    name: str
    outcome: Outcome
    # Why it did not pass; what was printed last if a command failed.
    reason: str = ""
    seconds: float = 0.0


class DriverTests(Struct, frozen=True, kw_only=True):
    """Results of the tests that ran on the GPU."""

    passed: list[str]
    # Names, with the first line of the error.
    failed: dict[str, str]
    # Names, with the reason.
    skipped: dict[str, str]


class NetworkTime(Struct, frozen=True, kw_only=True):
    """Duration of the network, or of a part of it, in PyTorch."""

    form: Form
    mode: Mode
    scope: Scope
    batch: Count
    # Median of the rounds, per call.
    microseconds: float
    # Slowest round / fastest round.
    spread: float


class Agreement(Struct, frozen=True, kw_only=True):
    """How well logits agree with those of the original network in float32 without TF32."""

    form: Form
    mode: Mode
    batch: Count
    # Share of pixels with the same mask.
    equal_pixels: Fraction
    # Largest absolute difference of logits.
    largest_difference: float


class NetworkRuns(Struct, frozen=True, kw_only=True):
    """The measurements of part 3 so far; its process rewrites them after each step."""

    # Type of weights and activations outside the guidance.
    precision: str
    # Side of the images in pixels.
    tile: Count
    steps: list[Step] = msgspec.field(default_factory=list)
    times: list[NetworkTime] = msgspec.field(default_factory=list)
    agreements: list[Agreement] = msgspec.field(default_factory=list)


class Machine(Struct, frozen=True, kw_only=True):
    """The device and the host."""

    # Name of the GPU, or of the processor with --cpu.
    device: str
    # Such as "sm87"; empty with --cpu.
    compute_capability: str
    memory_gib: float
    # Newest CUDA version that the driver supports; empty with --cpu.
    cuda_driver: str
    # Version of NVIDIA's driver, if the system reports it.
    nvidia_driver: str
    # Processor, cores, memory, system, Python and, on a Jetson, model and Jetson Linux release.
    host: dict[str, Any]
    # Versions of installed packages.
    versions: dict[str, str]


class Record(Struct, frozen=True, kw_only=True):
    """Everything that one run found."""

    schema_version: int = SCHEMA_VERSION
    # ISO 8601, UTC.
    created: str
    # Git commit of the checkout, with "+" if files were changed; "unknown" without git.
    commit: str
    # Time limit of the run and time used, in seconds.
    limit: float
    seconds: float
    machine: Machine
    steps: list[Step]
    # Null: not run.
    driver_tests: DriverTests | None
    # Precisions of the engines of the bundle that this device ran, by name; each passed its golden tiles.
    engines: dict[str, str]
    # Latency and throughput of engines.
    timings: list[Timing]
    # Null: not run.
    network: NetworkRuns | None


def decode(data: bytes) -> Record:
    """Reads a record; raises msgspec's errors if a field is missing, unknown or of another type."""
    return msgspec.json.decode(data, type=Record)
