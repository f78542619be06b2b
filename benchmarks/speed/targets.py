"""Compares the figures of a report with this project's speed targets. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from benchmarks.speed.entrants import STRAIGHT
from benchmarks.speed.ratios import MIN_F1_RATIO, keeps_f1, speed_of
from benchmarks.speed.report import Row, Scene, ScenePath, Target

_DEFAULT_INT8 = "quantize_static"
# Names of the precisions of float graphs.
_FLOAT = {"": "f32", "f32": "f32", "float32": "f32", "bf16": "BF16"}
# The float graph against the straight export: required factors by engine and precision.
_FLOAT_GRAPH = {("ONNX Runtime", "f32"): 1.2, ("OpenVINO", "f32"): 1.0, ("OpenVINO", "BF16"): 1.0}
_SCENE_SHARE, _LOOP_SHARE = 0.95, 0.9  # of the engine's own rate
Figure = Callable[[Row], float | None]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What is required on one kind of processor; factors unless a unit is named."""

    scene: float
    throughput: float
    latency: float
    default_int8: float
    # Seconds of predict outside the computing of tiles.
    outside: float
    # Stretch goals.
    more_scene: float | None = None
    more_throughput: float | None = None


WITH_AMX = Factors(
    scene=1.5, more_scene=2.0, throughput=1.25, more_throughput=1.5, latency=1.2, default_int8=3.0, outside=1.2
)  # fmt: skip
WITHOUT_AMX = Factors(scene=1.7, throughput=1.4, latency=1.3, default_int8=2.0, outside=2.0)


def factors_for(features: Collection[str]) -> Factors:
    """Returns what is required on a processor with these instruction sets, under Linux's names."""
    return WITH_AMX if any(feature.startswith("amx_") for feature in features) else WITHOUT_AMX


def targets_of(rows: Sequence[Row], scene: Scene | None, features: Collection[str]) -> list[Target]:
    """Returns the result for each speed target.

    Args:
        rows: Rows with their ratios.
        scene: The whole paths; None if they were left out.
        features: The processor's instruction sets.
    """
    factors = factors_for(features)
    ours_in_ort = _best(rows, speed_of, lambda row: row.side == "ours" and row.engine == "ONNX Runtime")
    default = next((row for row in rows if row.key.startswith(f"{_DEFAULT_INT8} ")), None)
    return [
        *_scene_targets(scene, factors),
        _against_peers("pairs/s, best engine against best peer", rows, speed_of, factors.throughput,
                       factors.more_throughput),
        _against_peers("single pair, p50, best engine against best peer", rows, _calls_per_second, factors.latency),
        *(_float_graph(rows, *which, factor) for which, factor in _FLOAT_GRAPH.items()),
        _pair("ONNX Runtime against its `quantize_static` default, pairs/s", ours_in_ort, default,
              factors.default_int8),
    ]  # fmt: skip


def _calls_per_second(row: Row) -> float | None:
    return 1000 / row.latency.p50_ms if row.latency else None


def _best(rows: Sequence[Row], figure: Figure, counts: Callable[[Row], bool]) -> Row | None:
    """Returns the row with the highest figure among those that keep F1 and for which ``counts`` is true."""
    measured = [row for row in rows if figure(row) and keeps_f1(row) and counts(row)]
    return max(measured, key=lambda row: figure(row) or 0.0, default=None)


def _against_peers(
    name: str, rows: Sequence[Row], figure: Figure, factor: float, more: float | None = None
) -> Target:  # fmt: skip
    """Compares the best engine with the best peer, both among the rows that keep F1; names peers that only are fast."""
    ours, peer = (_best(rows, figure, lambda row, side=side: row.side == side) for side in ("ours", "peer"))
    if ours is None or peer is None:
        return _factor(name, factor, more, None, "")
    own, other = figure(ours) or 0.0, figure(peer) or 0.0
    faster = [row for row in rows if row.side == "peer" and not keeps_f1(row) and (figure(row) or 0.0) > other]
    beside = [
        f"; {own / (figure(row) or 1.0):.2f} times {row.name}"
        + ("" if row.f1_ratio is None else f", whose F1 ratio is {row.f1_ratio:.4f}")
        for row in faster
    ]
    return _factor(name, factor, more, own / other, f"{ours.name} against {peer.name}{''.join(beside)}")


def _float_graph(rows: Sequence[Row], engine: str, precision: str, factor: float) -> Target:
    """Compares this project's float graph with the straight export in one engine and precision, in pairs/s."""

    def fits(row: Row) -> bool:
        is_one_of_both = row.side == "ours" or row.key.startswith(f"{STRAIGHT} ")
        return is_one_of_both and row.engine == engine and _FLOAT.get(row.precision) == precision

    ours, peer = (_best(rows, speed_of, lambda row, side=side: fits(row) and row.side == side)
                  for side in ("ours", "peer"))  # fmt: skip
    return _pair(f"float graph against the straight export, {engine} {precision}, pairs/s", ours, peer, factor)


def _pair(name: str, ours: Row | None, base: Row | None, factor: float) -> Target:
    speed, other = (row and speed_of(row) for row in (ours, base))
    if ours is None or not speed or not other:
        return _factor(name, factor, None, None, "")
    return _factor(name, factor, None, speed / other, ours.name)


def _factor(name: str, factor: float, more: float | None, found: float | None, who: str) -> Target:
    """Returns a target for a factor; ``more``: its stretch goal, ``who``: what was compared."""
    required = f"at least {factor:g} times" + (f", stretch {more:g}" if more else "")
    if found is None:
        return Target(name, required, "not measured", None)
    return Target(name, required, f"{found:.2f} times ({who})", found >= factor, bool(more and found >= more))


def _scene_targets(scene: Scene | None, factors: Factors) -> list[Target]:
    ours, loop = (scene.path_of(side) if scene else None for side in ("ours", "peer"))
    size = f"scene of {scene.pixels:,} px" if scene else "scene"
    return [
        _whole_path(f"{size}: `predict` against the tiled loop, start to written raster", scene, factors),
        _outside(f"{size}: start and end of `predict`", ours, factors.outside),
        _share(f"{size}: share of the engine's own rate, `predict`", ours, _SCENE_SHARE),
        _share(f"{size}: share of the engine's own rate, tiled loop (it must be a fair peer)", loop, _LOOP_SHARE),
    ]


def _whole_path(name: str, scene: Scene | None, factors: Factors) -> Target:
    """Compares the Mpixel/s of both paths; this project's must keep the F1 of the loop."""
    ours, loop = (scene.path_of(side) if scene else None for side in ("ours", "peer"))
    if scene is None or ours is None or loop is None:
        return _factor(name, factors.scene, factors.more_scene, None, "")
    own, other = (statistics.median(scene.speeds(path)) for path in (ours, loop))
    ratio = ours.f1 / loop.f1 if ours.f1 is not None and loop.f1 else None
    who = f"{own:.2f} and {other:.2f} Mpixel/s, " + ("no F1" if ratio is None else f"F1 ratio {ratio:.4f}")
    found = _factor(name, factors.scene, factors.more_scene, own / other, who)
    if ratio is None or ratio < MIN_F1_RATIO:
        return Target(name, found.asked, found.found, reached=False)
    return found


def _outside(name: str, path: ScenePath | None, limit: float) -> Target:
    required = f"under {limit:g} s together"
    if path is None:
        return Target(name, required, "not measured", None)
    return Target(name, required, f"{path.outside:.2f} s", path.outside < limit)


def _share(name: str, path: ScenePath | None, limit: float) -> Target:
    required = f"at least {limit:g}"
    if path is None:
        return Target(name, required, "not measured", None)
    return Target(name, required, f"{path.share:.3f} ({path.engine})", path.share >= limit)
