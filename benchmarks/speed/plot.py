"""Plots throughput against F1, with a label for each contender."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.report import Report, Row
from misgnet_runtime.machine import machine_line
from misgnet_runtime.storage.atomic import replace_file

SHOWN_DROP = 0.01  # range of F1; contenders further below the best are drawn at the lower edge, labelled with their F1
_COLOURS = {"peer": "#4a5a66", "ours": "#c1440e"}
_LABEL = 0.16  # height of a label, as a share of the shown F1 range


def draw(report: Report, path: Path) -> None:
    """Writes the plot as PNG; rows without F1 or throughput are omitted."""
    from matplotlib.figure import Figure

    rows = sorted((row for row in report.rows if row.f1 is not None and row.throughput), key=_speed)
    figure = Figure(figsize=(11, 3.6 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"Speed and F1 from the same weights\n{machine_line(report.machine)}", fontsize=10)
    axes.set_xlabel("throughput, image pairs/s (median; bar: lowest to highest round)")
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        _fill(axes, rows)
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def heights(rows: Sequence[Row]) -> tuple[list[float], float, float]:
    """Returns the height of each row's point, and the lower and upper edge of the plot, in F1."""
    scores = [row.f1 or 0.0 for row in rows]
    top = max(scores)
    lowest = max(min(scores), top - SHOWN_DROP)
    bottom = lowest - 0.1 * max(top - lowest, SHOWN_DROP / 5)
    return [max(score, bottom) for score in scores], bottom, top


def _fill(axes: Any, rows: Sequence[Row]) -> None:
    """Draws the points, and labels above them; slower rows have higher labels, so that no line crosses a label."""
    points, bottom, top = heights(rows)
    step = _LABEL * (top - bottom)
    for index, (row, height) in enumerate(zip(rows, points, strict=True)):
        level = top + (len(rows) - index + 0.5) * step
        colour, speed = _COLOURS[row.side], _speed(row)
        axes.vlines(speed, height, level, color=colour, lw=0.6, alpha=0.6)
        axes.text(speed, level, f" {_label(row, height)}", color=colour, fontsize=8, va="center")
        if row.throughput:
            axes.hlines(height, row.throughput.lowest, row.throughput.highest, color=colour, lw=2, alpha=0.5)
        axes.plot(speed, height, "o" if height == row.f1 else "v", color=colour)
    ticks = np.linspace(bottom, top, 5)
    axes.set_yticks(ticks, [f"{tick:.4f}" for tick in ticks])
    axes.set_ylabel("F1 on the evaluation tiles", loc="bottom")
    axes.set_ylim(bottom - step, top + (len(rows) + 1.5) * step)
    axes.set_xlim(0, 1.45 * _speed(rows[-1]))


def _label(row: Row, height: float) -> str:
    below = "" if height == row.f1 else f", F1 {row.f1:.3f}"
    return f"{row.name.replace('`', '')}: {_speed(row):.1f}{below}"


def _speed(row: Row) -> float:
    return row.throughput.median if row.throughput else 0.0
