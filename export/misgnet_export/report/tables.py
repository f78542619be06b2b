"""Formats the evidence as tables for the terminal; they fit 80 columns, and markup in texts is ignored."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from misgnet_export.report import figures
from misgnet_runtime.accuracy.parity import EngineParity, ParityReport
from misgnet_runtime.formatting import plural, printable
from misgnet_runtime.inference.throughput import Timing

_STYLES = {"pass": "green", "FAIL": "bold red"}


def parity_table(report: ParityReport) -> Table:
    """Returns a table with one row per engine; the caption gives the reason for each engine not run or run by proxy."""
    f1 = figures.number(report.reference_scores.get("f1"))
    table = plain_table(f"Parity with {report.reference} (F1 {f1}), {limit(report)}")
    table.add_column("Engine", overflow="fold", min_width=10)
    table.add_column("Status", no_wrap=True)
    for name in ("F1", "Drop", "95 % interval", "Same mask"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for engine in report.engines:
        table.add_row(*_parity_row(engine))
    reasons = [f"{e.engine}: {e.status}: {e.reason}" for e in report.engines if e.status != "run"]
    verdicts = [(e.engine, e.verdict) for e in report.engines if e.verdict]
    rules = [f"{engine}: {verdict.reason}" for engine, verdict in verdicts if verdict.rule != "F1 drop"]
    rough = any(figures.few_sources(e.interval) for e in report.engines)
    note = [f"~ rough: {plural(report.sources, 'source image')} only"] if rough else []
    table.caption = Text("\n".join(map(plain, reasons + rules + note)), style="dim")
    return table


def limit(report: ParityReport) -> str:
    """Returns the allowed drop in words."""
    what = "at most" if report.gate == "point" else "at the upper end of its interval at most"
    return f"{what} {report.max_f1_drop:g} points lower"


def throughput_table(timings: list[Timing]) -> Table:
    """Returns a table with one row per timing; the last column compares with the float engine at the same batch."""
    table = plain_table("Latency of one call, and throughput")
    table.add_column("Engine", overflow="fold", min_width=10)
    table.add_column("Precision", overflow="fold")
    for name in ("Batch", "p50 ms", "p90 ms", "p99 ms", "Pairs/s", "vs float"):
        table.add_column(name, justify="right", no_wrap=True)
    for timing, ratio in zip(timings, figures.speed_ratios(timings), strict=True):
        table.add_row(cell(timing.engine), cell(timing.precision), *_timing_cells(timing, ratio))
    return table


def stage_table(stages: list[tuple[str, float, str]]) -> Table:
    """Returns a table with one row per stage: its name, its seconds and its finding."""
    table = plain_table("Stages")
    table.add_column("Stage", overflow="fold")
    table.add_column("Seconds", justify="right", no_wrap=True)
    table.add_column("Result", overflow="fold")
    for name, seconds, found in stages:
        table.add_row(cell(name), f"{seconds:.1f}", cell(found))
    return table


def plain_table(title: str) -> Table:
    """Returns a table without lines, with a left-aligned title whose markup is ignored."""
    heading = Text(plain(title), style="bold")
    return Table(title=heading, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def cell(text: str) -> Text:
    """Returns a text of a file or user as a cell: markup is ignored, control characters are escaped."""
    return Text(plain(text))


def plain(text: str) -> str:
    """Escapes like :func:`printable`, with ordinary spaces for the no-break spaces in figures."""
    return printable(text.replace("\xa0", " "))


def _parity_row(engine: EngineParity) -> list[Text]:
    word = figures.verdict_word(engine)
    cells = [engine.status, *_numbers(engine)] if engine.verdict else [engine.status, "", "", "", ""]
    return [cell(engine.engine), *map(cell, cells), Text(word, style=_STYLES.get(word, "dim"))]


def _numbers(engine: EngineParity) -> list[str]:
    rough = "~" if figures.few_sources(engine.interval) else ""
    return [
        figures.number(engine.scores.get("f1")),
        figures.signed(engine.f1_drop_points),
        rough + figures.interval(engine.interval),
        figures.percent(engine.agreement),
    ]


def _timing_cells(timing: Timing, ratio: float | None) -> list[str]:
    times = [f"{ms:.1f}" for ms in (timing.p50_ms, timing.p90_ms, timing.p99_ms)]
    gain = "n/a" if ratio is None else f"{ratio:.2f} x"
    return [str(timing.batch), *times, f"{timing.pairs_per_second:.1f}", gain]
