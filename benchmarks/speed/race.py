"""The timing: latency of single calls, then throughput at the best setting of each; all in rounds that take turns."""

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
from benchmarks.speed.answers import open_for, start
from benchmarks.speed.entrants import Entrant
from benchmarks.speed.report import Latency, Setting, Throughput, Tried

TRIALS = 3  # measurements of a setting before the rounds
TRIAL_SHARE = 0.5  # of a round's time
PRODUCT = "matrix product"
Found = TypeVar("Found")
Guests = Mapping[str, Guest]


@dataclass(frozen=True, kw_only=True)
class Course:
    """``tiles``: the handed-over folder; ``seconds``: of one entrant in one round; ``limit_s``: of one request."""

    tiles: Path
    threads: int
    rounds: int
    seconds: float
    work: Path
    limit_s: float

    @property
    def log(self) -> Path:
        return self.work / "engines.txt"


@dataclass(frozen=True)
class Times:
    """What the race has found of one entrant; ``failed``: why it has not all of it."""

    latency: Latency | None = None
    throughput: Throughput | None = None
    failed: str = ""


def race(course: Course, entrants: Sequence[Entrant]) -> tuple[dict[str, Times], Latency | None]:
    """The times of all entrants by key, and the matrix product's; an entrant that fails stops none of the others."""
    by_key = {entrant.key: entrant for entrant in entrants}
    failed: dict[str, str] = {}
    with ExitStack() as running:
        guests = _well(failed, {key: _started(course, entrant, running) for key, entrant in by_key.items()})
        calls = _well(failed, _one_by_one("opening", guests, lambda k, g: _first_calls(course, by_key[k], g)))
        guests = {key: guests[key] for key in calls}
        latencies = latency_rounds(course, guests, calls)
        product = latencies.pop(PRODUCT, None)
        latency = _well(failed, latencies)
        tried = _well(failed, _one_by_one("settings", guests, lambda k, g: _try(course, by_key[k], g)))
        throughput = _well(failed, throughput_rounds(course, {key: guests[key] for key in tried}, tried))
    times = {key: Times(latency.get(key), throughput.get(key), failed.get(key, "")) for key in by_key}
    return times, product if isinstance(product, Latency) else None


def _well(failed: dict[str, str], found: Mapping[str, Found | str]) -> dict[str, Found]:
    """What was found; the reasons of those that have failed go to ``failed``."""
    failed.update({key: value for key, value in found.items() if isinstance(value, str)})
    return {key: value for key, value in found.items() if not isinstance(value, str)}


def _started(course: Course, entrant: Entrant, running: ExitStack) -> Guest | str:
    try:
        return running.enter_context(start(entrant, course.log, course.limit_s))
    except ContenderFailed as error:
        return str(error)


def _one_by_one(what: str, guests: Guests, ask: Callable[[str, Guest], Found]) -> dict[str, Found | str]:
    """What ``ask`` finds, guest after guest, while the others are stopped."""
    found: dict[str, Found | str] = {}
    for key, guest in guests.items():
        print(f"{what}: {key}", file=sys.stderr, flush=True)
        try:
            found[key] = ask(key, guest)
        except ContenderFailed as error:
            found[key] = str(error)
            continue
        guest.pause()
    return found


def _first_calls(course: Course, entrant: Entrant, guest: Guest) -> float:
    """Open for single calls; milliseconds of a call that is not among the first ones."""
    open_for(guest, entrant, course.threads)
    return min(guest.ask("time", tiles=course.tiles, calls=5)["ms"])


def latency_rounds(course: Course, guests: Guests, call_ms: Mapping[str, float]) -> dict[str, Latency | str]:
    """Single calls of all, and beside them matrix products about as long as the fastest one's calls."""
    if not guests:
        return {}
    with Guest(_product(course.threads), course.log, course.limit_s) as product:
        shortest = min(call_ms.values())
        product.ask("open", seconds=shortest / 1000)
        product.pause()
        lengths = {**call_ms, PRODUCT: shortest}

        def ask(key: str, guest: Guest, number: int) -> list[float]:
            calls = max(2, round(1000 * course.seconds / lengths[key])) if number else 2
            # The first call finds the caches full of others' data: it is not counted.
            times: list[float] = guest.ask("time", tiles=course.tiles, calls=calls + 1)["ms"]
            return times[1:]

        found = in_rounds("latency", {**guests, PRODUCT: product}, course.rounds, ask)
    return {key: value if isinstance(value, str) else latency_of(value) for key, value in found.items()}


def _product(threads: int) -> Program:
    return own("benchmarks.speed.own.multiply", OPENBLAS_NUM_THREADS=str(threads))


def latency_of(rounds: list[list[float]]) -> Latency:
    """From the milliseconds of each call of each round."""
    every = [ms for times in rounds for ms in times]
    p50, p99 = (float(x) for x in np.percentile(every, (50, 99)))
    medians = [statistics.median(times) for times in rounds]
    return Latency(p50, p99, min(medians), max(medians), len(every))


def _try(course: Course, entrant: Entrant, guest: Guest) -> list[Tried]:
    """Measure each setting, the best one last in the list, which stays open."""
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
    """Pairs a second of all, each at the setting that it has open: the last one of those ``tried``."""

    def ask(key: str, guest: Guest, _number: int) -> float:
        best = tried[key][-1].setting
        return _rate(course, guest, best, _calls_for(course, guest, best))

    found = in_rounds("throughput", guests, course.rounds, ask)
    return {
        key: value if isinstance(value, str) else throughput_of(value, tried[key]) for key, value in found.items()
    }  # fmt: skip


def throughput_of(rates: list[float], tried: list[Tried]) -> Throughput:
    return Throughput(tried[-1].setting, statistics.median(rates), min(rates), max(rates), rates, tried)


def _calls_for(course: Course, guest: Guest, setting: Setting, share: float = 1.0) -> int:
    """Batches that take about ``share`` of a round's time: one a stream, which is not counted, says how many."""
    first = _seconds(course, guest, setting, setting.streams)
    return setting.streams * max(2, round(share * course.seconds / first))


def _rate(course: Course, guest: Guest, setting: Setting, calls: int) -> float:
    """Pairs a second."""
    return calls * setting.batch / _seconds(course, guest, setting, calls)


def _seconds(course: Course, guest: Guest, setting: Setting, calls: int) -> float:
    return float(guest.ask("rate", tiles=course.tiles, batch=setting.batch, calls=calls)["seconds"])
