"""Throughput: every engine in a process of its own, all of them in rounds that take turns."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.int8_peers.guest import ContenderFailed, Guest
from misgnet_runtime.manifest import Struct


class Speed(Struct, frozen=True):
    """Pairs a second at batch 1 of each round: their median and extremes; ``p50_ms`` over all calls."""

    median: float
    lowest: float
    highest: float
    p50_ms: float
    calls: int


def measure(guests: Mapping[int, Guest], tiles: Path, rounds: int, seconds: float) -> dict[int, Speed | str]:
    """The speed of each opened guest, or why it has none. ``seconds``: of one engine in one round."""
    calls: dict[int, int] = {}
    found: dict[int, list[list[float]]] = {key: [] for key in guests}
    failed: dict[int, str] = {}
    for number in range(1 + rounds):  # the first one warms up
        for key, guest in _turn(guests, number):
            if key in failed:
                continue
            try:
                times = guest.ask("time", tiles=tiles, calls=calls.get(key, 3))["ms"]
            except ContenderFailed as error:
                failed[key] = str(error)
                continue
            if number:
                found[key].append(times)
            else:
                calls[key] = max(3, round(1000 * seconds / times[-1]))
        print(f"throughput: round {number} of {rounds}", file=sys.stderr, flush=True)
    return {key: failed[key] if key in failed else speed(found[key]) for key in guests}


def speed(rounds: list[list[float]]) -> Speed:
    """From the milliseconds of each call of each round."""
    rates = [1000 * len(times) / sum(times) for times in rounds]
    every = [ms for times in rounds for ms in times]
    return Speed(statistics.median(rates), min(rates), max(rates), statistics.median(every), len(every))


def _turn(guests: Mapping[int, Guest], number: int) -> list[tuple[int, Guest]]:
    """There and back, so that nobody always runs behind the same neighbour."""
    order = list(guests.items())
    return order if number % 2 else order[::-1]
