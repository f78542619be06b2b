"""The report: one HTML file that holds everything it shows and loads nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from misgnet_export.evidence import ControlRecord, TilePicture
from misgnet_export.report import control, figures, pictures
from misgnet_runtime.accuracy.parity import EngineParity, ParityReport
from misgnet_runtime.bundle import RepairEntry
from misgnet_runtime.formatting import plural, printable
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.machine import machine_line

PLOT_WIDTH = 150  # px, of the drawn intervals


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that is shown. ``stages``: name, seconds, what was found; ``files``: path, bytes.

    ``pictures`` go by the engine's name, ``repairs`` and ``controls`` by the graph's; ``machine`` is that of
    ``describe_machine``.
    """

    title: str
    created: str
    passed: bool
    facts: list[tuple[str, str]]
    parity: ParityReport
    timings: list[Timing]
    machine: dict[str, Any]
    stages: list[tuple[str, float, str]]
    files: list[tuple[str, int]]
    pictures: dict[str, list[TilePicture]]
    repairs: Mapping[str, Sequence[RepairEntry]] = field(default_factory=dict)
    controls: Mapping[str, ControlRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class Axis:
    """A common scale of F1 drops, in points, over ``PLOT_WIDTH`` px."""

    low: float
    high: float

    def x(self, points: float) -> str:
        return f"{PLOT_WIDTH * (points - self.low) / (self.high - self.low):.1f}"


def render(data: ReportData) -> str:
    """The whole page. Every text is escaped; images are in it as ``data:`` addresses."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # parity, for one, runs where it is not installed

    environment = Environment(
        loader=PackageLoader("misgnet_export.report", "."),
        autoescape=True, finalize=_visible, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    shown = {
        "fig": figures,
        "plural": plural,
        "pic": pictures,
        "control": control,
        "axis": drop_axis(data.parity),
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
    """Texts with what a browser obeys or hides escaped (control and format characters); markup as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__") or value.isprintable():
        return value
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(printable(c) if c not in "\n\t" and unicodedata.category(c) in hidden else c for c in value)


def headline(data: ReportData) -> str:
    """The verdict in one sentence; it never claims more than was judged."""
    engines, judged = data.parity.engines, figures.judged(data.parity)
    failed = [e.engine for e in judged if e.verdict and not e.verdict.passed]
    proxies = sum(e.status == "proxy" for e in judged)
    how = f" ({proxies} of them by proxy)" if proxies else ""
    scope = f"{len(judged)} of {plural(len(engines), 'engine')} judged{how}"
    if not judged:
        return f"Nothing proven: {scope}"
    if failed:
        return f"Failed: {scope}, {len(failed)} outside the limit: {', '.join(failed)}"
    if not data.passed:
        return f"Failed: {scope}, all within the limit, but another check is not met; see the stages"
    return f"Passed: {scope}, all within the limit"


def caveats(data: ReportData) -> list[str]:
    """What the verdict does not cover, in the words of a sceptical reader."""
    report = data.parity
    found = [f"{e.engine} was not run: {e.reason}" for e in report.engines if e.status == "not run"]
    proxies = [e for e in report.engines if e.status == "proxy"]
    found += [f"{e.engine} was judged by proxy only: {e.reason}" for e in proxies]
    return found + _interval_caveats(report) + _speed_caveats(data.timings)


def drop_axis(report: ParityReport) -> Axis | None:
    """The scale that holds all drops, all intervals, zero and the limit; None without any drop."""
    drops = [e.f1_drop_points for e in report.engines if e.f1_drop_points is not None]
    if not drops:
        return None
    ends = [end for e in report.engines if e.interval for end in (e.interval.low, e.interval.high)]
    points = [0.0, report.max_f1_drop, *drops, *ends]
    margin = 0.05 * (max(points) - min(points)) or 1.0
    return Axis(min(points) - margin, max(points) + margin)


def short_path(path: str) -> str:
    """The last two parts: the report may travel, the folders of this machine do not."""
    parts = [part for part in PurePath(path).parts if part != PurePath(path).anchor]
    return "/".join(parts[-2:]) or path


def _interval_caveats(report: ParityReport) -> list[str]:
    run = [e for e in report.engines if e.f1_drop_points is not None]
    found = []
    if any(figures.few_sources(e.interval) for e in run):
        few = f"{plural(report.sources, 'source image')} only, fewer than {figures.FEW_SOURCES}"
        found.append(f"the intervals rest on {few}: they are rough")
    if alone := [e.engine for e in run if e.interval is None]:
        found.append(f"no interval for {', '.join(alone)}: that needs at least two source images")
    if report.reference_scores.get("f1") is None:
        found.append("no label holds a change, so nothing here shows that changes are still found")
    return found + [_reaches_over(e, report) for e in run if _reaches(e, report)]


def _reaches(engine: EngineParity, report: ParityReport) -> bool:
    if engine.verdict is None or engine.interval is None or report.gate == "upper":
        return False
    return engine.verdict.passed and engine.interval.high > report.max_f1_drop


def _reaches_over(engine: EngineParity, report: ParityReport) -> str:
    high = engine.interval.high if engine.interval else 0.0
    return (
        f"the interval of {engine.engine} reaches {figures.signed(high)} points, over the limit of "
        f"{report.max_f1_drop:g}: on other images of this kind the drop may be larger than allowed"
    )


def _speed_caveats(timings: list[Timing]) -> list[str]:
    slow = [
        f"{t.engine} at batch {t.batch} ({ratio:.2f} times its pairs per second)"
        for t, ratio in zip(timings, figures.speed_ratios(timings), strict=True)
        if ratio is not None and ratio < 0.995
    ]
    return [f"slower than the float engine on this machine: {', '.join(slow)}"] if slow else []
