"""Measures the peak rate of matrix products on this machine, to which engines are compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.contest.guest import ContenderFailed, Guest, Program, foreign, own
from benchmarks.contest.rounds import in_rounds
from benchmarks.speed.race import Course
from benchmarks.speed.report import Kind, Peak

ROWS = (512, 1024, 2048)  # of square matrices; some fit into a core's cache, some do not
_CALLS = 4


@dataclass(frozen=True)
class Multiplier:
    """A library that multiplies matrices."""

    kind: Kind
    library: str
    program: Program | ContenderFailed
    # Arguments of the request besides rows, calls and threads.
    request: dict[str, Any]
    rows: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind} {self.library}"


def multipliers(python_of: Callable[[str], Path], threads: int) -> list[Multiplier]:
    """Returns NumPy and PyTorch in this environment, and ONNX Runtime and OpenVINO in their own ones."""
    here = own("benchmarks.speed.own.multiply", OPENBLAS_NUM_THREADS=str(threads))
    found = [
        Multiplier("float32", name, here, {"library": library})
        for name, library in (("NumPy", "numpy"), ("PyTorch", "torch"))
    ]
    for name, environment in (("ONNX Runtime", "onnxruntime"), ("OpenVINO", "openvino")):
        program = _foreign(python_of, environment)
        kinds: tuple[Kind, Kind] = ("float32", "int8")
        found += [Multiplier(kind, name, program, {"kind": kind}) for kind in kinds]
    return found


def _foreign(python_of: Callable[[str], Path], environment: str) -> Program | ContenderFailed:
    try:
        return foreign(python_of(environment), f"multiply_{environment}.py")
    except ContenderFailed as error:
        return error


def measure_peaks(course: Course, multipliers: Sequence[Multiplier]) -> list[Peak]:
    """Measures the rate of each library at its fastest number of rows, in alternating rounds."""
    peaks, best = [], dict[str, Multiplier]()
    with ExitStack() as running:
        guests: dict[str, Guest] = {}
        for one in multipliers:
            try:
                guests[one.name], best[one.name] = _opened(course, one, running)
            except ContenderFailed as error:
                peaks.append(Peak(one.kind, one.library, 0, 0.0, 0.0, 0.0, str(error)))

        def send(name: str, guest: Guest, _number: int) -> float:
            return _rate(course, guest, best[name])

        found = in_rounds("matrix products", guests, course.rounds, send)
    return [*(_peak(best[name], rates) for name, rates in found.items()), *peaks]


def best_peak(peaks: Sequence[Peak], kind: Kind) -> Peak | None:
    """Returns the highest peak of a kind; None if none could be measured."""
    return max((p for p in peaks if p.kind == kind and not p.failed), key=lambda p: p.median, default=None)


def _opened(course: Course, one: Multiplier, running: ExitStack) -> tuple[Guest, Multiplier]:
    """Starts the library's process; returns it, and the multiplier with its fastest number of rows."""
    if isinstance(one.program, ContenderFailed):
        raise one.program
    guest = running.enter_context(Guest(one.program, course.log, course.limit_s))
    at = [replace(one, rows=rows) for rows in ROWS]
    fastest = max(at, key=lambda sized: _rate(course, guest, sized))
    guest.pause()
    return guest, fastest


def _rate(course: Course, guest: Guest, one: Multiplier) -> float:
    reply = guest.call("multiply", rows=one.rows, calls=_CALLS, threads=course.threads, **one.request)
    return float(reply["operations_per_second"])


def _peak(one: Multiplier, rates: list[float] | str) -> Peak:
    if isinstance(rates, str):
        return Peak(one.kind, one.library, one.rows, 0.0, 0.0, 0.0, rates)
    return Peak(one.kind, one.library, one.rows, statistics.median(rates), min(rates), max(rates))
