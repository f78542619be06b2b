"""Formats the evidence as tables for the terminal; markup in texts is ignored."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from misgnet_export.report import figures
from misgnet_runtime.accuracy.parity import EngineParity, ParityReport
from misgnet_runtime.formatting import by_reason, plural
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.tables import cell, plain, plain_table

_PLAIN_RULES = ("F1 drop", "F1 ratio")  # a row shows all that they decide on
_STYLES = {"pass": "green", "FAIL": "bold red", figures.LEFT_OUT: "yellow"}


def parity_table(report: ParityReport) -> Table:
    """Returns a table with one row per engine; the caption gives the reason for each engine not run or run by proxy."""
    f1 = f"F1 {figures.number(report.reference_scores.get('f1'))}" if report.labelled else "F1 not measured: no labels"
    table = plain_table(f"Parity with {report.reference} ({f1}): {report.limit.describe(report.gate)}")
    table.add_column("Engine", overflow="fold", min_width=10)
    table.add_column("Status", no_wrap=True)
    by_ratio, below = report.min_f1_ratio is not None, "\n95 % interval"
    for name in ("F1", f"Ratio{below * by_ratio}", f"Drop{below * (not by_ratio)}", "Same mask"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for engine in report.engines:
        table.add_row(*_parity_row(engine.engine, engine, by_ratio, figures.verdict_word(engine)))
    for engine in report.left_out:
        table.add_row(*_parity_row(figures.name_of_left_out(engine), engine, by_ratio, figures.LEFT_OUT))
    others = by_reason((e.engine, f"{e.status}: {e.reason}") for e in report.engines if e.status != "run")
    reasons = [f"{names}: {reason}" for names, reason in others]
    verdicts = [(e.engine, e.verdict) for e in report.engines if e.verdict]
    rules = [f"{engine}: {verdict.reason}" for engine, verdict in verdicts if verdict.rule not in _PLAIN_RULES]
    out = [(figures.name_of_left_out(e), e.verdict) for e in report.left_out if e.verdict]
    rules += [f"{name}: {figures.LEFT_OUT}: {verdict.reason}" for name, verdict in out]
    rough = any(figures.few_sources(e.interval) for e in report.engines)
    note = [f"~ rough: {plural(report.sources, 'source image')} only"] if rough else []
    table.caption = Text("\n".join(map(plain, reasons + rules + note)), style="dim")
    return table


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


def _parity_row(name: str, engine: EngineParity, by_ratio: bool, word: str) -> list[Text]:
    numbers = _numbers(engine, by_ratio) if engine.verdict else [Text()] * 4
    return [cell(name), cell(engine.status), *numbers, Text(word, style=_STYLES.get(word, "dim"))]


def _numbers(engine: EngineParity, by_ratio: bool) -> list[Text]:
    """Returns F1, ratio, drop and agreement; the interval is below the value that the gate limits."""
    rough = "~" if figures.few_sources(engine.interval) else ""
    ratio, drop = cell(figures.ratio(engine.f1_ratio)), cell(figures.signed(engine.f1_drop_points))
    if by_ratio:
        ratio.append(f"\n{rough}{figures.ratio_interval(engine.ratio_interval)}", "dim")
    else:
        drop.append(f"\n{rough}{figures.interval(engine.interval)}", "dim")
    return [cell(figures.number(engine.scores.get("f1"))), ratio, drop, cell(figures.percent(engine.agreement))]


def _timing_cells(timing: Timing, ratio: float | None) -> list[str]:
    times = [f"{ms:.1f}" for ms in (timing.p50_ms, timing.p90_ms, timing.p99_ms)]
    gain = "n/a" if ratio is None else f"{ratio:.2f} x"
    return [str(timing.batch), *times, f"{timing.pairs_per_second:.1f}", gain]
