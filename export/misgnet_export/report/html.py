"""Renders the report: one self-contained HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from misgnet_export.evidence import ControlRecord, PlanRecord, TilePicture
from misgnet_export.report import control, curves, figures, pictures, plans
from misgnet_runtime.accuracy.parity import EngineParity, ParityReport
from misgnet_runtime.bundle import MeasuredOverlap, MeasuredTile, RepairEntry
from misgnet_runtime.formatting import plural, printable
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.machine import machine_line

PLOT_WIDTH = 150  # px, of the plotted intervals


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The contents of the report."""

    title: str
    created: str
    passed: bool
    summary: list[tuple[str, str]]  # (label, value)
    parity: ParityReport
    timings: list[Timing]
    machine: dict[str, Any]  # from describe_machine
    stages: list[tuple[str, float, str]]  # (name, seconds, finding)
    files: list[tuple[str, int]]  # (path, bytes)
    pictures: dict[str, list[TilePicture]]  # by engine
    warnings: Sequence[str] = ()  # signs that the network was declared wrongly
    repairs: Mapping[str, Sequence[RepairEntry]] = field(default_factory=dict)  # by graph
    controls: Mapping[str, ControlRecord] = field(default_factory=dict)  # by graph
    sizes: Sequence[MeasuredTile] = ()  # of tiles, ascending; empty if the size was given
    overlaps: Sequence[MeasuredOverlap] = ()  # by ascending overlap
    overlap: int = 0  # the one that scenes are computed with, in pixels
    plans: Sequence[PlanRecord] = ()  # with their kernels


@dataclass(frozen=True)
class Axis:
    """A common scale of F1 drops in points, ``PLOT_WIDTH`` px wide."""

    low: float
    high: float

    def x(self, points: float) -> str:
        return f"{PLOT_WIDTH * (points - self.low) / (self.high - self.low):.1f}"


def render(data: ReportData) -> str:
    """Returns the whole page. All texts are escaped; images are embedded as ``data:`` addresses."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # not needed by `parity`, so imported here

    environment = Environment(
        loader=PackageLoader("misgnet_export.report", "."),
        autoescape=True, finalize=_visible, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    shown = {
        "fig": figures,
        "plural": plural,
        "pic": pictures,
        "control": control,
        "plans": plans,
        "axis": drop_axis(data.parity),
        "curves": curves.of_overlaps(data.overlaps, data.overlap),
        "allowed": allowed_points(data.parity),
        "plot_width": PLOT_WIDTH,
    }
    return environment.get_template("report.html.j2").render(
        shown,
        data=data,
        parity=data.parity,
        passed=data.passed and data.parity.passed,
        headline=headline(data),
        caveats=caveats(data),
        machine=machine_line(data.machine),
        evaluation_set=short_path(data.parity.evaluation_set),
    )


def _visible(value: Any) -> Any:
    """Escapes control and format characters in texts, which a browser would obey or hide; keeps markup."""
    if not isinstance(value, str) or hasattr(value, "__html__") or value.isprintable():
        return value
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(printable(c) if c not in "\n\t" and unicodedata.category(c) in hidden else c for c in value)


def headline(data: ReportData) -> str:
    """Returns the verdict in one sentence, which never claims more than was evaluated."""
    engines, evaluated = data.parity.engines, figures.with_verdict(data.parity)
    failed = [e.engine for e in evaluated if e.verdict and not e.verdict.passed]
    proxies = sum(e.status == "proxy" for e in evaluated)
    how = f" ({proxies} of them by proxy)" if proxies else ""
    scope = f"{len(evaluated)} of {plural(len(engines), 'engine')} evaluated{how}"
    out = ", ".join(map(figures.name_of_left_out, data.parity.left_out))
    if not evaluated:
        return f"Nothing proven: {scope}"
    if failed:
        return f"Failed: {scope}, {len(failed)} outside the limit: {', '.join(failed)}"
    if not data.passed:
        return f"Failed: {scope}, all within the limit, but another check failed; see the stages"
    return f"Passed: {scope}, all within the limit{out and f'; left out of the bundle: {out}'}"


def caveats(data: ReportData) -> list[str]:
    """Returns what the verdict does not cover, from the view of a sceptical reader."""
    report = data.parity
    found = [f"{e.engine} was not run: {e.reason}" for e in report.engines if e.status == "not run"]
    proxies = [e for e in report.engines if e.status == "proxy"]
    found += [f"{e.engine} was evaluated by proxy only: {e.reason}" for e in proxies]
    found += [
        f"{figures.name_of_left_out(e)} is not in the bundle: {e.verdict.reason}" for e in report.left_out if e.verdict
    ]
    return [*data.warnings, *found, *_interval_caveats(report), *_speed_caveats(data.timings)]


def drop_axis(report: ParityReport) -> Axis | None:
    """Returns a scale that includes all drops, all intervals, zero and the limit; None if there is no drop."""
    engines = [*report.engines, *report.left_out]
    drops = [e.f1_drop_points for e in engines if e.f1_drop_points is not None]
    if not drops:
        return None
    ends = [end for e in engines if e.interval for end in (e.interval.low, e.interval.high)]
    points = [0.0, allowed_points(report), *drops, *ends]
    margin = 0.05 * (max(points) - min(points)) or 1.0
    return Axis(min(points) - margin, max(points) + margin)


def allowed_points(report: ParityReport) -> float:
    """Returns the drop that the limit allows on this evaluation set, in points."""
    return report.limit.points(report.reference_scores.get("f1"))


def short_path(path: str) -> str:
    """Returns the last two parts of a path: a report may be passed on, and must not show this machine's folders."""
    parts = [part for part in PurePath(path).parts if part != PurePath(path).anchor]
    return "/".join(parts[-2:]) or path


def _interval_caveats(report: ParityReport) -> list[str]:
    run = [e for e in report.engines if e.f1_drop_points is not None]
    found = []
    if any(figures.few_sources(e.interval) for e in run):
        few = f"{plural(report.sources, 'source image')} only, fewer than {figures.FEW_SOURCES}"
        found.append(f"the intervals are rough: they are based on {few}")
    if alone := [e.engine for e in run if e.interval is None]:
        found.append(f"no interval for {', '.join(alone)}: at least two source images are needed")
    if not report.labelled:
        found.append("F1 was not measured, because the evaluation set has no labels: the agreement decided")
    elif report.reference_scores.get("f1") is None:
        found.append("no label contains a change, so this does not show whether changes are still found")
    return found + [line for e in run if (line := _reaches_over(e, report))]


def _reaches_over(engine: EngineParity, report: ParityReport) -> str | None:
    """Returns how the interval of an engine that passes by its measured value reaches beyond the limit."""
    if engine.verdict is None or not engine.verdict.passed or report.gate == "upper":
        return None
    limit, ratio = report.limit, engine.ratio_interval
    if limit.min_f1_ratio is None:
        if engine.interval is None or engine.interval.high <= limit.points(None):
            return None
        reached = f"{figures.signed(engine.interval.high)} points, above the limit of {limit.max_f1_drop:g}"
    else:
        if ratio is None or ratio.low >= limit.min_f1_ratio:
            return None
        reached = f"an F1 ratio of {figures.ratio(ratio.low)}, below the required {limit.min_f1_ratio:g}"
    return (
        f"the interval of {engine.engine} reaches {reached}: on other images of this kind more may be lost than allowed"
    )


def _speed_caveats(timings: list[Timing]) -> list[str]:
    slow = [
        f"{t.engine} at batch {t.batch} ({ratio:.2f} times its pairs per second)"
        for t, ratio in zip(timings, figures.speed_ratios(timings), strict=True)
        if ratio is not None and ratio < 0.995
    ]
    return [f"slower than the float engine on this machine: {', '.join(slow)}"] if slow else []
