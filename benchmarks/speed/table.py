"""Formats the report as Markdown: rows, targets, and the conditions of the measurement."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.speed.peaks import best_peak
from benchmarks.speed.ratios import MIN_F1_RATIO, best_peer
from benchmarks.speed.report import Kind, Latency, Peak, Report, Row, Scene, ScenePath, Target, Throughput
from misgnet_runtime.formatting import plural
from misgnet_runtime.machine import machine_line

_HEAD = (
    "contender", "engine", "F1", "drop, points", "F1 ratio", "equal pixels", "one pair: p50, p99 ms",
    "pairs/s (lowest to highest)", "streams x batch", "x best peer", "x eager", "of FP32, INT8 peak",
)  # fmt: skip
_SCENE_HEAD = (
    "whole path", "engine", "F1", "Mpixel/s (lowest to highest)", "seconds", "of these start and end", "tiles",
    "tiles/s", "engine alone, pairs/s", "share",
)  # fmt: skip
_SHOWN_VERSIONS = ("torch", "onnxruntime", "nncf", "openvino")


def markdown(report: Report) -> str:
    """Returns the tables of the race, of the scene and of the targets, and the captions."""
    best = best_peer(report.rows)
    lines = [
        *_head(_HEAD), *(_line(row, best) for row in report.rows), "",
        *_scene(report.scene),
        *_head(("target", "required", "measured", "")), *map(_target, report.targets), "",
        *(f"- {line}" for line in _captions(report)),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _line(row: Row, best: Row | None) -> str:
    where = f"{row.engine}, {row.precision}" if row.precision else row.engine
    first = [f"**{row.title}**" if row.side == "ours" else row.title, where]
    if row.failed:
        return _cells([*first, f"failed: {_plain(row.failed)}", *[""] * (len(_HEAD) - 3)])
    ratio = "the best" if best and row.key == best.key else _number(row.to_best_peer, ".2f")
    return _cells([
        *first, _number(row.f1, ".4f"), _number(row.drop_points, ".3f"), _number(row.f1_ratio, ".4f"),
        "" if row.agreement is None else f"{100 * row.agreement:.3f} %", _latency(row.latency),
        *_throughput(row.throughput), ratio, _number(row.to_eager, ".2f"), _shares(row),
    ])  # fmt: skip


def _scene(scene: Scene | None) -> list[str]:
    return [*_head(_SCENE_HEAD), *(_path(scene, path) for path in scene.paths), ""] if scene else []


def _path(scene: Scene, path: ScenePath) -> str:
    title = f"**{path.title}**" if path.side == "ours" else path.title
    if path.failed:
        return _cells([title, path.engine, f"failed: {_plain(path.failed)}", *[""] * (len(_SCENE_HEAD) - 3)])
    speeds = scene.speeds(path)
    return _cells([
        title, path.engine, _number(path.f1, ".4f"),
        f"{statistics.median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f})", f"{path.seconds:.1f}",
        f"{path.outside:.2f}", str(path.rounds[0].tiles), f"{path.tile_rate:.1f}", f"{path.engine_rate:.1f}",
        f"{path.share:.3f}",
    ])  # fmt: skip


def _target(target: Target) -> str:
    verdict = {True: "reached", False: "**not reached**", None: ""}[target.reached]
    verdict += ", and the stretch goal" if target.stretch else ""
    return _cells((target.name, target.asked, target.found, verdict))


def _captions(report: Report) -> list[str]:
    """Returns the machine, the method, the MACs, the peaks, the settings tried, missing rows, notes and versions."""
    sets, settings, work = report.sets, report.settings, report.work
    return [
        f"{machine_line(report.machine)}; {plural(settings['threads'], 'thread')}; load average "
        f"{report.load_before:.1f} before the run, {report.load_after:.1f} at its end.",
        "All contenders start from the same weights and get the same uint8 images. "
        f"{plural(sets['calibration_tiles'], 'calibration tile')}, "
        f"{plural(sets['evaluation_tiles'], 'evaluation tile')} of {plural(sets['evaluation_images'], 'image')}; drop "
        f"and equal pixels are relative to the straight export in {report.rows[0].engine}.",
        f"Every contender has its own process; {plural(settings['rounds'], 'alternating round')} in reversing order, "
        f"{settings['seconds']:g} s each; processes that are not measured are stopped. Pairs/s: median of the rounds. "
        f"Best peer: the fastest contender that is not this project's and has an F1 ratio of at least {MIN_F1_RATIO}.",
        *_scene_caption(report),
        f"{work.operations / 1e9:.1f} G operations per pair (a MAC counts as two), {2 * work.activations / 1e9:.2f} G "
        f"of them between activations, counted on the straight export. {_peaks(report.peaks)}",
        *_product(report.matrix_product),
        f"Settings tried, pairs/s at streams x batch: {_tried(report.rows)}.",
        *(f"No row: {absent.title}: {absent.reason}." for absent in report.absent),
        *dict.fromkeys(f"{row.name}: {_plain(note)}." for row in report.rows for note in row.notes),
        f"Versions: {_versions(report.rows)}.",
    ]


def _scene_caption(report: Report) -> list[str]:
    if report.scene is None:
        return []
    side, rounds = report.scene.pixels, report.settings["scene_rounds"]
    return [
        f"Whole path: a pair of {side:,} x {side:,} px made of the evaluation images, from the start of the process to "
        f"its exit; medians of {plural(rounds, 'alternating round')} after one that fills the caches of compiled "
        "graphs. The engine alone is measured directly before and after each run."
    ]


def _peaks(peaks: Sequence[Peak]) -> str:
    kinds: tuple[tuple[Kind, str], ...] = (("float32", "FP32"), ("int8", "INT8"))
    return " ".join(_peak(name, best_peak(peaks, kind)) for kind, name in kinds)


def _peak(name: str, found: Peak | None) -> str:
    if found is None:
        return f"The {name} matrix peak could not be measured."
    low, high = found.lowest / 1e9, found.highest / 1e9
    return (
        f"{name} matrix peak: {found.median / 1e9:.0f} G operations/s ({low:.0f} to {high:.0f}), by {found.library}, "
        f"{found.rows} rows."
    )


def _product(product: Latency | None) -> list[str]:
    if product is None:
        return []
    values = f"p50 {product.p50_ms:.1f}, p99 {product.p99_ms:.1f} ms: p99 / p50 is {product.jitter:.2f}"
    return [f"A matrix product of NumPy in the rounds of the single calls: {values}."]


def _tried(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if row.throughput:
            each = sorted(row.throughput.tried, key=lambda t: (t.setting.streams * t.setting.batch, t.setting.batch))
            speeds = [f"{t.setting.streams} x {t.setting.batch} {t.pairs_per_second:.1f}" for t in each]
            lines.append(f"{row.name} {', '.join(speeds)}")
    return "; ".join(lines) or "none"


def _versions(rows: Sequence[Row]) -> str:
    """Returns the versions of the tools that made and ran the graphs; several if environments differ."""
    every = {(name, version) for row in rows for name, version in row.versions.items() if name in _SHOWN_VERSIONS}
    return ", ".join(f"{name} {version}" for name, version in sorted(every)) or "not known"


def _latency(found: Latency | None) -> str:
    return "" if found is None else f"{found.p50_ms:.1f}, {found.p99_ms:.1f}"


def _throughput(found: Throughput | None) -> list[str]:
    if found is None:
        return ["", ""]
    speed = f"{found.median:.1f} ({found.lowest:.1f} to {found.highest:.1f})"
    return [speed, f"{found.setting.streams} x {found.setting.batch}"]


def _shares(row: Row) -> str:
    if row.of_float32_peak is None and row.of_int8_peak is None:
        return ""
    return ", ".join("not known" if x is None else f"{100 * x:.0f} %" for x in (row.of_float32_peak, row.of_int8_peak))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _head(titles: Sequence[str]) -> list[str]:
    return [_cells(titles), "|" + "---|" * len(titles)]


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Returns ``text`` on one line, without characters that end a table cell."""
    return " ".join(text.replace("|", "/").split())
