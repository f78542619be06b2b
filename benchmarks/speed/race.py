"""Times the entrants in alternating rounds: latency of single calls, then throughput at the best setting of each."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.contest.guest import ContenderFailed, Guest, Program, own
from benchmarks.contest.rounds import in_rounds
from benchmarks.speed.entrants import Entrant
from benchmarks.speed.predictions import open_for, start
from benchmarks.speed.report import Latency, Setting, Throughput, Tried

TRIALS = 3  # measurements of a setting before the rounds
TRIAL_SHARE = 0.5  # of a round's time
PRODUCT = "matrix product"
Found = TypeVar("Found")
Guests = Mapping[str, Guest]


@dataclass(frozen=True, kw_only=True)
class Course:
    """Settings of the timing."""

    # Folder of tiles.
    tiles: Path
    threads: int
    rounds: int
    # Measuring time of one entrant in one round.
    seconds: float
    work: Path
    # Time limit of one request in seconds.
    limit_s: float

    @property
    def log(self) -> Path:
        return self.work / "engines.txt"


@dataclass(frozen=True)
class Times:
    """Times of one entrant."""

    latency: Latency | None = None
    throughput: Throughput | None = None
    # Why a time is missing.
    failed: str = ""


def race(course: Course, entrants: Sequence[Entrant]) -> tuple[dict[str, Times], Latency | None]:
    """Returns the times of all entrants by key, and of the matrix product. A failure does not stop other entrants."""
    by_key = {entrant.key: entrant for entrant in entrants}
    failed: dict[str, str] = {}
    with ExitStack() as running:
        guests = _successes(failed, {key: _started(course, entrant, running) for key, entrant in by_key.items()})
        calls = _successes(failed, _in_sequence("opening", guests, lambda k, g: _first_calls(course, by_key[k], g)))
        guests = {key: guests[key] for key in calls}
        latencies = latency_rounds(course, guests, calls)
        product = latencies.pop(PRODUCT, None)
        latency = _successes(failed, latencies)
        tried = _successes(
            failed, _in_sequence("settings", guests, lambda k, g: _measure_settings(course, by_key[k], g))
        )
        throughput = _successes(failed, throughput_rounds(course, {key: guests[key] for key in tried}, tried))
    times = {key: Times(latency.get(key), throughput.get(key), failed.get(key, "")) for key in by_key}
    return times, product if isinstance(product, Latency) else None


def _successes(failed: dict[str, str], found: Mapping[str, Found | str]) -> dict[str, Found]:
    """Returns the successful results, and adds the reasons of failures to ``failed``."""
    failed.update({key: value for key, value in found.items() if isinstance(value, str)})
    return {key: value for key, value in found.items() if not isinstance(value, str)}


def _started(course: Course, entrant: Entrant, running: ExitStack) -> Guest | str:
    try:
        return running.enter_context(start(entrant, course.log, course.limit_s))
    except ContenderFailed as error:
        return str(error)


def _in_sequence(name: str, guests: Guests, send: Callable[[str, Guest], Found]) -> dict[str, Found | str]:
    """Returns the results of ``send`` for each guest in turn, while the others are paused."""
    found: dict[str, Found | str] = {}
    for key, guest in guests.items():
        print(f"{name}: {key}", file=sys.stderr, flush=True)
        try:
            found[key] = send(key, guest)
        except ContenderFailed as error:
            found[key] = str(error)
            continue
        guest.pause()
    return found


def _first_calls(course: Course, entrant: Entrant, guest: Guest) -> float:
    """Opens the engine for single calls; returns the milliseconds of a call after warm-up."""
    open_for(guest, entrant, course.threads)
    return min(guest.call("time", tiles=course.tiles, calls=5)["ms"])


def latency_rounds(course: Course, guests: Guests, call_ms: Mapping[str, float]) -> dict[str, Latency | str]:
    """Times single calls of all guests, and matrix products that take about as long as the fastest guest's calls."""
    if not guests:
        return {}
    with Guest(_product(course.threads), course.log, course.limit_s) as product:
        shortest = min(call_ms.values())
        product.call("open", seconds=shortest / 1000)
        product.pause()
        lengths = {**call_ms, PRODUCT: shortest}

        def send(key: str, guest: Guest, number: int) -> list[float]:
            calls = max(2, round(1000 * course.seconds / lengths[key])) if number else 2
            # The first call is not counted: the caches hold other guests' data.
            times: list[float] = guest.call("time", tiles=course.tiles, calls=calls + 1)["ms"]
            return times[1:]

        found = in_rounds("latency", {**guests, PRODUCT: product}, course.rounds, send)
    return {key: value if isinstance(value, str) else latency_of(value) for key, value in found.items()}


def _product(threads: int) -> Program:
    return own("benchmarks.speed.own.multiply", OPENBLAS_NUM_THREADS=str(threads))


def latency_of(rounds: list[list[float]]) -> Latency:
    """Returns the latency for the milliseconds of each call of each round."""
    every = [ms for times in rounds for ms in times]
    p50, p99 = (float(x) for x in np.percentile(every, (50, 99)))
    medians = [statistics.median(times) for times in rounds]
    return Latency(p50, p99, min(medians), max(medians), len(every))


def _measure_settings(course: Course, entrant: Entrant, guest: Guest) -> list[Tried]:
    """Measures each setting, sorted from slowest to fastest, and leaves the engine open at the fastest."""
    tried = []
    for setting in entrant.settings:
        open_for(guest, entrant, course.threads, setting)
        calls = _calls_for(course, guest, setting, TRIAL_SHARE)
        rates = [_rate(course, guest, setting, calls) for _ in range(TRIALS)]
        tried.append(Tried(setting, statistics.median(rates)))
    tried.sort(key=lambda one: one.pairs_per_second)
    open_for(guest, entrant, course.threads, tried[-1].setting)
    return tried


def throughput_rounds(
    course: Course, guests: Guests, tried: Mapping[str, list[Tried]]
) -> dict[str, Throughput | str]:  # fmt: skip
    """Measures the pairs/s of all guests, each at its open setting, which is the last one in ``tried``."""

    def send(key: str, guest: Guest, _number: int) -> float:
        return rate_for(course, guest, tried[key][-1].setting)

    found = in_rounds("throughput", guests, course.rounds, send)
    return {
        key: value if isinstance(value, str) else throughput_of(value, tried[key]) for key, value in found.items()
    }  # fmt: skip


def rate_for(course: Course, guest: Guest, setting: Setting) -> float:
    """Returns the pairs/s of a guest whose engine is open at ``setting``, measured for about a round's time."""
    return _rate(course, guest, setting, _calls_for(course, guest, setting))


def throughput_of(rates: list[float], tried: list[Tried]) -> Throughput:
    return Throughput(tried[-1].setting, statistics.median(rates), min(rates), max(rates), rates, tried)


def _calls_for(course: Course, guest: Guest, setting: Setting, share: float = 1.0) -> int:
    """Returns the number of batches that take about ``share`` of a round, estimated from one batch per stream."""
    first = _seconds(course, guest, setting, setting.streams)
    return setting.streams * max(2, round(share * course.seconds / first))


def _rate(course: Course, guest: Guest, setting: Setting, calls: int) -> float:
    """Returns the pairs/s."""
    return calls * setting.batch / _seconds(course, guest, setting, calls)


def _seconds(course: Course, guest: Guest, setting: Setting, calls: int) -> float:
    return float(guest.call("rate", tiles=course.tiles, batch=setting.batch, calls=calls)["seconds"])
