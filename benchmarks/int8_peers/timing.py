"""Measures throughput at batch 1: every engine in its own process, in alternating rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks.contest.guest import Guest
from benchmarks.contest.rounds import in_rounds
from misgnet_runtime.storage.schema import Struct


class Speed(Struct, frozen=True):
    """Throughput at batch 1."""

    # Pairs/s of the rounds.
    median: float
    lowest: float
    highest: float
    # Over all calls.
    p50_ms: float
    calls: int


def measure(guests: Mapping[int, Guest], tiles: Path, rounds: int, seconds: float) -> dict[int, Speed | str]:
    """Returns the speed of each guest, or why it failed. ``seconds``: measuring time of an engine in a round."""
    calls: dict[int, int] = {}

    def send(key: int, guest: Guest, number: int) -> list[float]:
        times: list[float] = guest.call("time", tiles=tiles, calls=calls.get(key, 3))["ms"]
        if not number:
            calls[key] = max(3, round(1000 * seconds / times[-1]))
        return times

    found = in_rounds("throughput", guests, rounds, send)
    return {key: times if isinstance(times, str) else speed(times) for key, times in found.items()}


def speed(rounds: list[list[float]]) -> Speed:
    """Returns the speed for the milliseconds of each call of each round."""
    rates = [1000 * len(times) / sum(times) for times in rounds]
    every = [ms for times in rounds for ms in times]
    return Speed(statistics.median(rates), min(rates), max(rates), statistics.median(every), len(every))
