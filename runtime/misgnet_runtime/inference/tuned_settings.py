"""What is tuned, what it was found by, and what it holds for."""

from __future__ import annotations

from typing import Literal

from misgnet_runtime.bundle.fields import EngineName
from misgnet_runtime.engines import EngineSettings
from misgnet_runtime.storage.schema import Count, Positive, Sha256, Struct

# One pair at a time, or as many as there are: scenes, series, folders.
Goal = Literal["latency", "throughput"]
FORMAT = 1


class Setting(Struct, frozen=True):
    """How an engine is opened, and how many tiles it gets at once. ``threads``: of the CPU, in all streams."""

    threads: Positive | None
    streams: Positive
    batch: Positive
    engine: EngineSettings = EngineSettings()

    def words(self) -> str:
        """For a person: "2 threads in 1 stream, batch 1, no spinning"."""
        threads = "" if self.threads is None else f"{_count(self.threads, 'thread')} in "
        switches = {
            "no spinning": not self.engine.spinning, "no arena": not self.engine.arena, "pinning": self.engine.pinning,
            "hyper-threading": self.engine.hyper_threading,
        }  # fmt: skip
        told = "".join(f", {word}" for word, holds in switches.items() if holds)
        return f"{threads}{_count(self.streams, 'stream')}, batch {self.batch}{told}"


class Trial(Struct, frozen=True):
    """A setting and the one it would replace, measured side by side in alternating rounds.

    Medians of the rounds' pairs/s; ``gain``: median of their ratios less 1; ``spread``: from the first to the third
    quartile of these ratios. None where nothing was measured, for the reason that ``remark`` gives.
    """

    goal: Goal
    setting: Setting
    against: Setting
    pairs_per_second: float | None = None
    against_pairs_per_second: float | None = None
    gain: float | None = None
    spread: float | None = None
    taken: bool = False
    remark: str = ""

    def verdict(self) -> str:
        """For a person."""
        if self.gain is None or self.remark:
            return self.remark
        taken = "taken" if self.taken else "not taken"
        return f"{taken}, {100 * self.gain:+.1f} %, spread {100 * (self.spread or 0):.1f}"


class Place(Struct, frozen=True):
    """What a tuning holds for. ``bundle_sha256``: of the manifest; ``gpu``: empty for an engine on the CPU."""

    bundle_sha256: Sha256
    engine: EngineName
    processor: str
    cores: Count
    gpu: str
    library: str


class Found(Struct, frozen=True):
    """What serves a goal best, and how much faster than the default it was when both were measured in the end."""

    setting: Setting
    gain: float = 0.0

    def words(self) -> str:
        """For a person."""
        gain = f", {1 + self.gain:.2f} times as fast" if self.gain else ", as without tuning"
        return f"{self.setting.words()}{gain}"


class Tuning(Struct, frozen=True):
    """What is kept of one engine on one machine; ``created``: ISO 8601, UTC."""

    format: int
    created: str
    place: Place
    latency: Found
    throughput: Found
    trials: list[Trial]

    def setting(self, goal: Goal) -> Setting:
        return (self.latency if goal == "latency" else self.throughput).setting


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
