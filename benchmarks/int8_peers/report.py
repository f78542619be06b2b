"""Defines the report of the comparison, which is written as JSON, and formats it as a Markdown table."""

from __future__ import annotations

from typing import Any

from msgspec import field

from benchmarks.contest.share import Share
from benchmarks.int8_peers.timing import Speed
from misgnet_runtime.accuracy.gate import Interval
from misgnet_runtime.formatting import plural
from misgnet_runtime.machine import machine_line
from misgnet_runtime.storage.schema import Struct


class Made(Struct, frozen=True):
    """The size of a graph, and the cost of making it."""

    # Size of the graph.
    megabytes: float
    # Time without imports.
    seconds: float | None = None
    # Peak memory of the process.
    peak_mib: float | None = None
    versions: dict[str, str] = field(default_factory=dict)


class Row(Struct, frozen=True):
    """One graph in one engine."""

    contender: str
    title: str
    engine: str
    precision: str = ""
    # Why there are no figures.
    failed: str = ""
    # Remarks on the figures.
    notes: list[str] = field(default_factory=list)
    f1: float | None = None
    drop_points: float | None = None
    interval: Interval | None = None
    agreement: float | None = None
    int8_in_graph: Share | None = None
    int8_as_run: Share | None = None
    speed: Speed | None = None
    made: Made | None = None
    run_peak_mib: float | None = None
    versions: dict[str, str] = field(default_factory=dict)


class Report(Struct, frozen=True):
    """All rows, the baseline first, and the conditions of the measurement."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    sets: dict[str, Any]
    check: str
    rows: list[Row]


def table(report: Report) -> str:
    """Returns the rows as a Markdown table, followed by the conditions of the measurement."""
    base = next((row.speed.median for row in report.rows if row.speed), None)
    lines = [
        "| INT8 by | engine | F1 | drop, points | equal pixels | INT8: in the graph, as run | "
        "pairs/s (lowest to highest) | quantization: s, GiB | graph, MB |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row, base) for row in report.rows),
        "",
        *_captions(report),
    ]
    return "\n".join(lines)


def _line(row: Row, base: float | None) -> str:
    first = [row.title, f"{row.engine}, {row.precision}" if row.precision else row.engine]
    if row.failed:
        return "| " + " | ".join([*first, f"failed: {_cell(row.failed)}", *[""] * 6]) + " |"
    cells = [
        *first,
        _number(row.f1, ".4f"),
        _number(row.drop_points, ".3f"),
        "" if row.agreement is None else f"{100 * row.agreement:.3f} %",
        _shares(row),
        _speed(row.speed, base),
        _cost(row.made),
        _number(row.made.megabytes if row.made else None, ".1f"),
    ]
    return "| " + " | ".join(cells) + " |"


def _captions(report: Report) -> list[str]:
    """Returns the machine, the sets, the check and the notes, each once."""
    sets, settings = report.sets, report.settings
    lines = [
        f"{machine_line(report.machine)}; batch 1, {plural(settings['threads'], 'thread')}, "
        f"{plural(settings['rounds'], 'alternating round')}, each engine in its own process; the load average was "
        f"{settings['load_before']} before the run.",
        f"{plural(sets['calibration_tiles'], 'calibration tile')}, {sets['calibration_chosen']}; "
        f"{plural(sets['evaluation_tiles'], 'evaluation tile')} of {plural(sets['evaluation_images'], 'image')}. "
        f"{report.check}",
        "INT8: share of the MACs with constant weights; in the graph: weight and activation are quantized; as run: "
        "computed in INT8 by ONNX Runtime's optimised graph or OpenVINO's runtime model (at least, if the product of "
        "an operator cannot be identified by its name).",
    ]
    notes = dict.fromkeys(f"{row.title}: {note}." for row in report.rows for note in row.notes)
    versions = {k: v for row in report.rows for k, v in _versions(row).items()}
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return [f"- {line}" for line in [*lines, *notes, f"Versions: {listed}."]]


def _versions(row: Row) -> dict[str, str]:
    """Returns the versions of the tools that made and ran the graph, without their dependencies."""
    every = {**(row.made.versions if row.made else {}), **row.versions}
    return {k: v for k, v in every.items() if k in ("onnxruntime", "nvidia-modelopt", "nncf", "openvino")}


def _shares(row: Row) -> str:
    return ", ".join(map(_share, (row.int8_in_graph, row.int8_as_run)))


def _share(share: Share | None) -> str:
    if share is None:
        return "not known"
    return f"{'at least ' if share.unknown else ''}{100 * share.share:.1f} %"


def _speed(speed: Speed | None, base: float | None) -> str:
    if speed is None:
        return ""
    ratio = f", {speed.median / base:.2f} x" if base else ""
    return f"{speed.median:.1f} ({speed.lowest:.1f} to {speed.highest:.1f}){ratio}"


def _cost(made: Made | None) -> str:
    if made is None or made.seconds is None:
        return ""
    peak = "not known" if made.peak_mib is None else f"{made.peak_mib / 1024:.1f}"
    return f"{made.seconds:.0f}, {peak}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cell(text: str) -> str:
    """Returns ``text`` on one line, without characters that end a table cell."""
    return " ".join(text.replace("|", "/").split())
