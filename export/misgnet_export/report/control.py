"""Shows the steps of accuracy control as a table for the terminal and as a plot."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from misgnet_calibration.algorithms.accuracy_control import Phase, Stopped, listed
from misgnet_export.evidence import ControlRecord, StepRecord
from misgnet_export.report import figures
from misgnet_export.report.pictures import data_uri
from misgnet_runtime.formatting import plural
from misgnet_runtime.storage.atomic import replace_file
from misgnet_runtime.tables import cell, plain, plain_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN_NAMES = 3
_COLOURS: dict[Phase, str] = {"start": "0.2", "rank": "0.65", "revert": "C1", "regain": "C0"}
_ENDINGS: dict[Stopped, str] = {
    "at the start": "the fully quantized graph is within the limit",
    "finished": "the search is complete",
    "budget": "the time limit was reached",
    "outside the groups": "the limit is missed even with every group in float, so the cause is elsewhere",
}

_NUMBER: dict[str, Any] = {"justify": "right", "no_wrap": True}
_WORD: dict[str, Any] = {"no_wrap": True}
COLUMNS: dict[str, dict[str, Any]] = {
    "#": _NUMBER, "Phase": _WORD, "Groups": {"overflow": "fold", "min_width": 10},
    **dict.fromkeys(("Lost", "Same mask", "Error", "INT8", "Seconds"), _NUMBER), "": _WORD,
}  # fmt: skip


def control_table(record: ControlRecord) -> Table:
    """Returns a table with one row per step and the result in the caption; ignores markup in texts."""
    agreement = f", {figures.percent(record.min_agreement)} of pixels equal" if record.min_agreement else ""
    table = plain_table(f"Accuracy control, at most {record.limit_points:g} points lost{agreement}")
    for name, how in COLUMNS.items():
        table.add_column(name, **how)
    for step in record.steps:
        table.add_row(*_cells(step, record), style="bold" if step.number == record.result else "")
    table.caption = Text(plain(summary(record)), style="dim")
    return table


def step_rows(record: ControlRecord) -> list[list[str]]:
    """Returns the table's cells as plain text, one row per step under ``COLUMNS``."""
    return [[cell.plain for cell in _cells(step, record)] for step in record.steps]


def summary(record: ControlRecord) -> str:
    """Returns the outcome in sentences: the result, its float operators and their cost, and the number of evaluations.

    The cost is the share of the MACs that is not INT8 any more and, where an engine of the build's machine opens the
    graph, the measured speed.
    """
    step = record.chosen
    kept = listed(step.float_groups, record.groups)
    verb = "passes" if record.passed else "is the closest; none passed"
    share = figures.percent(step.int8_share_of_multiply_adds, 1)
    return (
        f"Step {step.number} {verb}: {step.reason}; {share} of the MACs are INT8. "
        f"Reverted to float: {kept}{_cost(record)}. "
        f"{_effort(record)} in {record.seconds:.0f} s; {_ENDINGS[record.stopped]}."
    )


def _cost(record: ControlRecord) -> str:
    """Returns the share of the MACs that reverting took from INT8, and its speed; "" if nothing was reverted."""
    before, after = (step.int8_share_of_multiply_adds for step in (record.steps[0], record.chosen))
    if not record.chosen.float_groups:
        return ""
    speed = f" ({record.speed.ratio:.2f} times the speed in {record.speed.engine})" if record.speed else ""
    return f", which takes {figures.percent(before - after, 1)} of the MACs out of INT8{speed}"


def _effort(record: ControlRecord) -> str:
    estimates = sum(step.estimated for step in record.steps)
    text = plural(len(record.steps) - estimates, "evaluation")
    return f"{text} and {plural(estimates, 'estimate')} on fewer tiles (~)" if estimates else text


def draw_control(record: ControlRecord, folder: Path, name: str = "control") -> list[Path]:
    """Writes ``name``.png and ``name``.svg to ``folder``, with equal bytes for equal records. Needs matplotlib."""
    from matplotlib import rc_context

    written = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure = control_figure(record)
        for path in written:
            with replace_file(path) as temporary:
                metadata = {"Date": None} if path.suffix == ".svg" else None
                figure.savefig(temporary, format=path.suffix[1:], dpi=120, metadata=metadata)
    return written


def plot_uri(record: ControlRecord) -> str:
    """Returns the plot as a ``data:`` address of a PNG."""
    buffer = io.BytesIO()
    control_figure(record).savefig(buffer, format="png", dpi=90)
    return data_uri(buffer.getvalue(), "png")


def control_figure(record: ControlRecord) -> Figure:
    """Plots points lost, differing pixels (if they are limited) and INT8 share by step; a ring marks the result."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    limited = record.min_agreement is not None
    axes = figure.subplots(2 + limited, 1, sharex=True)
    losses = [math.nan if step.loss_points is None else step.loss_points for step in record.steps]
    _draw_marks(axes[0], record, losses, record.limit_points)
    axes[0].set_ylabel("points lost")
    if record.min_agreement is not None:
        differing = [100 * (1 - step.agreement) for step in record.steps]
        _draw_marks(axes[1], record, differing, 100 * (1 - record.min_agreement))
        axes[1].set_ylabel("pixels that differ, %")
    _draw_shares(axes[-1], record)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _draw_marks(axis: Axes, record: ControlRecord, values: list[float], limit: float) -> None:
    """Draws one mark per step, filled if the step passed, with the limit and a ring around the result."""
    for phase, colour in _COLOURS.items():
        shown = [step for step in record.steps if step.phase == phase]
        label = f"{phase}, estimated" if any(step.estimated for step in shown) else phase
        axis.plot([], [], "o", color=colour, label=label if shown else "_")
        for step in shown:
            face = colour if step.accepted else "none"
            axis.plot(step.number, values[step.number - 1], "o", color=colour, markerfacecolor=face)
    axis.axhline(limit, color="0.4", linestyle="--", label="limit (filled marks are within all limits)")
    axis.plot(
        record.result, values[record.result - 1], "o", color="C3", markersize=12, fillstyle="none", label="result"
    )
    axis.set_yscale("symlog", linthresh=max(0.01, 2 * abs(limit)))  # from 0.05 to 80 points
    axis.yaxis.set_major_formatter("{x:g}")


def _draw_shares(axis: Axes, record: ControlRecord) -> None:
    axis.step([s.number for s in record.steps], _percents(record), where="mid", color="C2")
    axis.set(xlabel="evaluation", ylabel="INT8, % of\nMACs", ylim=(-3, 103))
    axis.locator_params(axis="x", integer=True)
    axis.plot(record.result, _percents(record)[record.result - 1], "o", color="C3", markersize=12, fillstyle="none")


def _percents(record: ControlRecord) -> list[float]:
    return [100 * step.int8_share_of_multiply_adds for step in record.steps]


def _cells(step: StepRecord, record: ControlRecord) -> list[Text]:
    numbers = [
        figures.signed(step.loss_points),
        figures.percent(step.agreement),
        "n/a" if step.logit_error is None else f"{step.logit_error:.1e}",
        figures.percent(step.int8_share_of_multiply_adds, 1),
        f"{step.seconds:.1f}",
    ]
    word = Text("pass", style="green") if step.accepted else Text("~" if step.estimated else "fail", style="dim")
    return [Text(str(step.number)), cell(step.phase), cell(_names(step, record)), *map(cell, numbers), word]


def _names(step: StepRecord, record: ControlRecord) -> str:
    """Returns the groups that a step reverted or, with a plus sign, quantized again."""
    if not step.changed:
        return "all INT8" if step.phase == "start" else "none of the others"
    if len(step.changed) == len(record.groups) and step.phase == "revert":
        return "all float"
    if step.changed == [group.name for group in record.groups if not group.multiply_adds]:
        return "all unweighted"
    more = len(step.changed) - _SHOWN_NAMES
    names = ", ".join(step.changed[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
    return f"+ {names}" if step.phase == "regain" else names
