"""Compares the figures of a report with this project's speed targets. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.speed.entrants import OUR_FLOAT, STRAIGHT
from benchmarks.speed.report import Latency, Row, Target

ALLOWED_DROP = 0.1  # points of F1
BEST_PEER, TIMES_EAGER, INT8_SHARE, QUANTIZE_STATIC, FLOAT_GRAPH, JITTER = 1.5, 10.0, 0.45, 1.5, 1.2, 1.3
_DEFAULT_INT8 = "quantize_static"


def targets_of(rows: Sequence[Row], product: Latency | None) -> list[Target]:
    """Returns the result for each speed target; ``rows`` must have their ratios and shares."""
    ours = _best(rows, _is_ours)
    in_ort = _best(rows, lambda row: _is_ours(row) and row.engine == "ONNX Runtime")
    return [
        _at_least("throughput against the best peer", BEST_PEER, ours, ours.to_best_peer if ours else None),
        _at_least("throughput against PyTorch eager float32", TIMES_EAGER, ours, ours.to_eager if ours else None),
        _share(ours),
        _ratio(
            "ONNX Runtime against its `quantize_static` default", QUANTIZE_STATIC, in_ort,
            _best(rows, lambda row: row.key.startswith(f"{_DEFAULT_INT8} ")),
        ),
        *(_float_graph(rows, engine) for engine in ("ONNX Runtime", "OpenVINO")),
        jitter_target(rows, product),
    ]  # fmt: skip


def jitter_target(rows: Sequence[Row], product: Latency | None) -> Target:
    """Returns the target for p99 / p50, which all engines of this project must reach; reports the worst one."""
    timed = [(row.latency.jitter, row) for row in rows if row.side == "ours" and row.latency]
    required = f"at most {JITTER}, or no worse than a matrix product in the same rounds"
    name = "latency, p99 / p50 at batch 1"
    if not timed:
        return Target(name, required, "not measured", None)
    worst, row = max(timed, key=lambda pair: pair[0])
    limit = max(JITTER, product.jitter if product else 0.0)
    beside = f"; the product {product.jitter:.2f}" if product else ""
    return Target(name, required, f"at most {worst:.2f} ({row.name}){beside}", worst <= limit)


def _is_ours(row: Row) -> bool:
    """Returns whether the row counts for this project: its drop of F1 is at most :data:`ALLOWED_DROP`."""
    return row.side == "ours" and row.drop_points is not None and row.drop_points <= ALLOWED_DROP


def _best(rows: Sequence[Row], counts: Callable[[Row], bool]) -> Row | None:
    return max((row for row in rows if row.throughput and counts(row)), key=_speed, default=None)


def _speed(row: Row) -> float:
    return row.throughput.median if row.throughput else 0.0


def _at_least(name: str, factor: float, row: Row | None, found: float | None) -> Target:
    required = f"at least {factor:g} times"
    if row is None or found is None:
        return Target(name, required, "not measured", None)
    return Target(name, required, f"{found:.2f} times ({row.name})", found >= factor)


def _ratio(name: str, factor: float, row: Row | None, base: Row | None) -> Target:
    return _at_least(name, factor, row, _speed(row) / _speed(base) if row and base else None)


def _share(row: Row | None) -> Target:
    name, required = "share of the INT8 matrix peak", f"at least {100 * INT8_SHARE:.0f} %"
    if row is None or row.of_int8_peak is None:
        return Target(name, required, "not measured", None)
    return Target(name, required, f"{100 * row.of_int8_peak:.0f} % ({row.name})", row.of_int8_peak >= INT8_SHARE)


def _float_graph(rows: Sequence[Row], engine: str) -> Target:
    """Returns the target for this project's float graph against the straight export, both in float32."""

    def is_float(row: Row, start: str) -> bool:
        return row.key.startswith(f"{start} ") and row.engine == engine and row.precision in ("", "f32", "float32")

    straight = _best(rows, lambda row: is_float(row, STRAIGHT))
    own = _best(rows, lambda row: is_float(row, OUR_FLOAT))
    return _ratio(f"float graph against the straight export, {engine}", FLOAT_GRAPH, own, straight)
