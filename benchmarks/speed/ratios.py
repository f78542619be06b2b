"""Adds times, ratios and shares to rows. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from benchmarks.speed.entrants import EAGER
from benchmarks.speed.peaks import best_peak
from benchmarks.speed.race import Times
from benchmarks.speed.report import Peak, Row, Work

MIN_F1_RATIO = 0.999  # of a row that counts in comparisons, to the first row


def timed_rows(rows: Sequence[Row], times: Mapping[str, Times], work: Work, peaks: Sequence[Peak]) -> list[Row]:
    """Returns ``rows`` with their times, compared with each other and with the machine's matrix peaks."""
    return with_ratios([_timed(row, times.get(row.key, Times())) for row in rows], work, peaks)


def _timed(row: Row, times: Times) -> Row:
    notes = [*row.notes, *([f"timing is incomplete: {times.failed}"] if times.failed else [])]
    return replace(row, latency=times.latency, throughput=times.throughput, notes=notes)


def with_ratios(rows: Sequence[Row], work: Work, peaks: Sequence[Peak]) -> list[Row]:
    """Adds ratios: of F1 to the first row's, of speed to the best peer and PyTorch eager, and to the matrix peaks."""
    rows = [replace(row, f1_ratio=row.f1 / rows[0].f1 if row.f1 is not None and rows[0].f1 else None) for row in rows]
    peer, eager = best_peer(rows), next((row for row in rows if row.key == EAGER), None)
    rates = [found.median if (found := best_peak(peaks, kind)) else None for kind in ("float32", "int8")]

    def compared(row: Row) -> Row:
        speed = speed_of(row)
        shares = [None if speed is None or not rate else speed * work.operations / rate for rate in rates]
        return replace(
            row, to_best_peer=_ratio(speed, peer), to_eager=_ratio(speed, eager), of_float32_peak=shares[0],
            of_int8_peak=shares[1],
        )  # fmt: skip

    return [compared(row) for row in rows]


def keeps_f1(row: Row) -> bool:
    """Returns whether a row counts in comparisons: its F1 ratio is at least :data:`MIN_F1_RATIO`."""
    return row.f1_ratio is not None and row.f1_ratio >= MIN_F1_RATIO


def best_peer(rows: Sequence[Row]) -> Row | None:
    """Returns the fastest row that is not this project's and that keeps F1."""
    peers = [row for row in rows if row.side == "peer" and row.throughput and keeps_f1(row)]
    return max(peers, key=lambda row: speed_of(row) or 0.0, default=None)


def speed_of(row: Row) -> float | None:
    """Returns the median pairs/s of a row that was measured."""
    return row.throughput.median if row.throughput else None


def _ratio(speed: float | None, base: Row | None) -> float | None:
    other = speed_of(base) if base else None
    return speed / other if speed and other else None
