"""The report as Markdown: the rows, the targets, and everything that a reader must know to trust them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.speed.peaks import best_peak
from benchmarks.speed.ratios import best_peer
from benchmarks.speed.report import Kind, Latency, Peak, Report, Row, Target, Throughput
from misgnet_runtime.machine import machine_line

_HEAD = (
    "contender", "run in", "F1", "drop, points", "pixels that agree", "one pair: p50, p99 ms",
    "pairs/s (lowest to highest)", "streams x batch", "x best peer", "x eager", "of FP32, INT8 peak",
)  # fmt: skip
_TOLD = ("torch", "onnxruntime", "nncf", "openvino")


def markdown(report: Report) -> str:
    """Table, targets and captions."""
    best = best_peer(report.rows)
    lines = [
        _cells(_HEAD), "|" + "---|" * len(_HEAD), *(_line(row, best) for row in report.rows), "",
        _cells(("target", "asked", "found", "")), "|---|---|---|---|", *map(_target, report.targets), "",
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
        *first, _number(row.f1, ".4f"), _number(row.drop_points, ".3f"),
        "" if row.agreement is None else f"{100 * row.agreement:.3f} %", _latency(row.latency),
        *_throughput(row.throughput), ratio, _number(row.to_eager, ".2f"), _shares(row),
    ])  # fmt: skip


def _target(target: Target) -> str:
    verdict = {True: "reached", False: "**not reached**", None: ""}[target.reached]
    return _cells((target.name, target.asked, target.found, verdict))


def _captions(report: Report) -> list[str]:
    """Machine, method, work, peaks, what was tried, who is absent, notes and versions."""
    sets, settings, work = report.sets, report.settings, report.work
    return [
        f"{machine_line(report.machine)}; {settings['threads']} threads; load {report.load_before:.1f} before the run, "
        f"{report.load_after:.1f} at its end.",
        f"All start from the same weights and take the same uint8 images. {sets['calibration_tiles']} calibration "
        f"tiles, {sets['evaluation_tiles']} evaluation tiles of {sets['evaluation_images']} images; drop and agreement "
        f"are against the straight export in {report.rows[0].engine}.",
        f"Every contender has a process of its own; {settings['rounds']} rounds take turns, there and back, "
        f"{settings['seconds']:g} s each; who is not measured is stopped. Pairs/s: median of the rounds. Best peer: "
        "the fastest that is not this project's, whatever its F1.",
        f"{work.operations / 1e9:.1f} G operations a pair (a multiply-add is two), {2 * work.activations / 1e9:.2f} of "
        f"them between activations, counted on the straight export. {_peaks(report.peaks)}",
        *_product(report.matrix_product),
        f"Settings tried, pairs/s at streams x batch: {_tried(report.rows)}.",
        *(f"No row: {absent.title}: {absent.reason}." for absent in report.absent),
        *dict.fromkeys(f"{row.name}: {_plain(note)}." for row in report.rows for note in row.notes),
        f"Versions: {_versions(report.rows)}.",
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
    told = f"p50 {product.p50_ms:.1f}, p99 {product.p99_ms:.1f} ms: p99 / p50 is {product.jitter:.2f}"
    return [f"A plain matrix product of NumPy in the loop of the single calls: {told}."]


def _tried(rows: Sequence[Row]) -> str:
    told = []
    for row in rows:
        if row.throughput:
            each = sorted(row.throughput.tried, key=lambda t: (t.setting.streams * t.setting.batch, t.setting.batch))
            speeds = [f"{t.setting.streams} x {t.setting.batch} {t.pairs_per_second:.1f}" for t in each]
            told.append(f"{row.name} {', '.join(speeds)}")
    return "; ".join(told) or "none"


def _versions(rows: Sequence[Row]) -> str:
    """Of what made and ran the graphs, without what they only use; several where environments differ."""
    every = {(name, version) for row in rows for name, version in row.versions.items() if name in _TOLD}
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


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """``text`` on one line that cannot end a cell."""
    return " ".join(text.replace("|", "/").split())
