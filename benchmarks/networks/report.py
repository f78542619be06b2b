"""Defines the report of the benchmark, which is written as JSON, and formats it as a Markdown table."""

from __future__ import annotations

from typing import Any

from msgspec import field

from misgnet_runtime.formatting import plural
from misgnet_runtime.machine import machine_line
from misgnet_runtime.storage.schema import Struct

FLOAT_TOLERANCE = 1e-3  # of the probability, between the bundle's float engine and the network in PyTorch
FEWEST, MOST = 0.05, 0.95  # share of changed pixels in the mask of a network with random weights
LONGEST_REASON = 300  # letters of a reason in the table


class Comparison(Struct, frozen=True):
    """An engine of the bundle, and how it differs from the network in PyTorch on all evaluation tiles."""

    precision: str
    f1: float | None
    # Share of pixels in its mask.
    changed: float
    # Share of pixels with equal masks.
    agreement: float
    # Of the probability of change.
    mean_difference: float
    largest_difference: float


class Row(Struct, frozen=True, kw_only=True):
    """The bundle of one network, made in one way."""

    key: str
    title: str
    # "onnx" or "pytorch".
    way: str
    # Name on PyPI, version and licence.
    package: str
    version: str
    licence: str
    # How it takes both dates, and what it outputs.
    io: str
    output: str
    bands: int
    # How it was exported; empty for a factory.
    exported: str = ""
    trained: bool = True
    parameters: int = 0
    # Why the bundle was not built; the row has no figures then.
    failed: str = ""
    # Why the figures cannot be right.
    wrong: list[str] = field(default_factory=list)
    # Warnings of the build, and engines that it left out.
    notes: list[str] = field(default_factory=list)
    threshold: float = 0.5
    # Of the network in PyTorch: F1 and the share of changed pixels.
    f1: float | None = None
    changed: float = 0.0
    # Operators and MACs of one pair in the bundle's float graph.
    nodes: int = 0
    macs: int = 0
    # Share of the MACs with weights in INT8, by graph.
    int8_share: dict[str, float] = field(default_factory=dict)
    # By engine of the bundle.
    engines: dict[str, Comparison] = field(default_factory=dict)
    # Pairs/s of single pairs in one stream, by engine.
    pairs_per_second: dict[str, float] = field(default_factory=dict)
    # Whether plans for RTX GPUs were compiled: "yes", or "no: " and the reason.
    rtx: str = ""
    # Of the build.
    seconds: float = 0.0

    def f1_ratio(self, engine: str) -> float | None:
        """Returns F1 of an engine divided by the network's; None if F1 says nothing."""
        found = self.engines[engine].f1
        return found / self.f1 if self.trained and self.f1 and found is not None else None


class Report(Struct, frozen=True):
    """All rows, and the conditions of the measurement."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str]
    rows: list[Row]


def doubts(row: Row) -> list[str]:
    """Returns why the figures of a row cannot be right, or cannot show that its bundle is."""
    found = [
        f"{name} in {engine.precision} differs from PyTorch by up to {engine.largest_difference:.1e}"
        for name, engine in row.engines.items()
        if engine.precision == "float32" and not engine.largest_difference <= FLOAT_TOLERANCE
    ]
    if not any(engine.precision == "float32" for engine in row.engines.values()):
        found.append("no float32 engine was compared")
    if row.trained and not row.f1:
        found.append("the trained network finds nothing, so F1 shows nothing")
    if not row.trained and not FEWEST <= row.changed <= MOST:
        found.append(f"{100 * row.changed:.1f} % of the mask changed, so agreement shows nothing")
    return found


def table(report: Report) -> str:
    """Returns the rows as Markdown tables, followed by the conditions of the measurement."""
    lines = [
        "| network | from | as | dates, output | nodes | M parameters | GMACs | INT8, % of MACs | F1 | float: largest "
        "difference | INT8: F1 ratio | equal pixels, % | mean difference | RTX plans | s |",
        "|" + "---|" * 15,
        *map(_line, report.rows),
        "",
        "| network | as | " + " | ".join(_SPEEDS) + " |",
        "|---|---|" + "---|" * len(_SPEEDS),
        *(_speed_line(row) for row in report.rows if not row.failed),
        "",
        *_captions(report),
    ]
    return "\n".join(lines) + "\n"


# Columns of the second table, and the engines that each may stand for.
_SPEEDS = {
    "ONNX Runtime, float32": ("cpu-float32",), "ONNX Runtime, INT8": ("cpu",), "OpenVINO, BF16": ("openvino-bf16",),
    "OpenVINO, INT8": ("openvino-int8-bf16", "openvino"),
}  # fmt: skip


def _line(row: Row) -> str:
    cells = [
        row.title, f"{row.package} {row.version}, {row.licence}", _way(row),
        f"{row.io}, {plural(row.bands, 'band')}; {row.output}",
    ]  # fmt: skip
    if row.failed:
        return _cells([*cells, f"failed: {_short(row.failed)}", *[""] * 10])
    floats = [engine for engine in row.engines.values() if engine.precision == "float32"]
    int8 = {name: engine for name, engine in row.engines.items() if "int8" in engine.precision}
    shares = sorted({f"{100 * share:.1f}" for share in row.int8_share.values()})
    wrong = f" **wrong: {_short('; '.join(row.wrong))}**" if row.wrong else ""
    return _cells([
        *cells,
        str(row.nodes),
        f"{row.parameters / 1e6:.1f}",
        f"{row.macs / 1e9:.2f}",
        ", ".join(shares) or "none",
        ("random weights" if not row.trained else f"{row.f1 or 0:.3f}") + wrong,
        ", ".join(f"{engine.largest_difference:.0e}" for engine in floats[:1]),
        _each(int8, lambda name, _: _number(row.f1_ratio(name), ".4f")),
        _each(int8, lambda _, engine: f"{100 * engine.agreement:.2f}"),
        _each(int8, lambda _, engine: f"{engine.mean_difference:.1e}"),
        _short(row.rtx),
        f"{row.seconds:.0f}",
    ])  # fmt: skip


def _speed_line(row: Row) -> str:
    return _cells([row.title, _way(row), *(_speed(row, *engines) for engines in _SPEEDS.values())])


def _speed(row: Row, *engines: str) -> str:
    """Returns the pairs/s of the first of ``engines`` that was timed."""
    found = next((row.pairs_per_second[name] for name in engines if name in row.pairs_per_second), None)
    return _number(found, ".1f")


def _each(engines: dict[str, Comparison], text: Any) -> str:
    found = [text(name, engine) for name, engine in engines.items()]
    return ", ".join(filter(None, found)) or "n/a"


def _way(row: Row) -> str:
    return row.exported if row.way == "onnx" else "factory"


_QUICK = " Built with --quick: ranges by maximum, neither repairs nor accuracy control, and a gate of 0.9."


def _captions(report: Report) -> list[str]:
    settings = report.settings
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
    lines = [
        f"{machine_line(report.machine)}; tiles of {settings['side']} px: {settings['train']} to train and to choose "
        f"{settings['calibration']} for calibration from, {settings['val']} for validation, {settings['test']} for "
        f"evaluation.{_QUICK * bool(settings.get('quick'))}",
        "F1 is that of the network in PyTorch. Differences, ratios and equal pixels compare the engines of the bundle "
        "with it, on all evaluation tiles, in a loop that uses nothing of the compiler. INT8: ONNX Runtime, then "
        "OpenVINO.",
        "Pairs/s: single pairs, from the evidence of the bundle.",
        f"Versions: {versions}.",
    ]
    notes = [f"{row.title}, {_way(row)}: {_short(note)}" for row in report.rows for note in dict.fromkeys(row.notes)]
    return [f"- {line}" for line in [*lines, *notes]]


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _short(text: str) -> str:
    """Returns ``text`` on one line, without characters that end a table cell."""
    line = " ".join(text.replace("|", "/").split())
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}..."
