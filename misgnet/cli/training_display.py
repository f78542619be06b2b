"""Displays the progress of a training run on a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, TaskProgressColumn, TextColumn

from misgnet_runtime.bars import Bars
from misgnet_runtime.cli.app import err_console
from misgnet_runtime.formatting import plural
from misgnet_runtime.log import unless_quiet

if TYPE_CHECKING:
    from misgnet.training import EpochReport, Report, StepReport


_WIDE = 96  # columns of a terminal in which bar and speed fit beside the rest


class TrainingDisplay:
    """A progress bar with loss, F1, speed and time left, and a line for every validation; use it in a ``with`` block.

    Args:
        shown: Whether to display anything; only the first process of a distributed run does.
    """

    def __init__(self, shown: bool = True) -> None:
        self._narrow = err_console.width < _WIDE
        bar = () if self._narrow else (BarColumn(24),)
        columns = (TextColumn("{task.description}"), *bar, TaskProgressColumn(), TextColumn("{task.fields[now]}"))
        self._bars = Bars(*columns, console=unless_quiet(err_console), disable=not shown)
        self._bar = self._bars.add_task("training", total=1.0, now="")
        self._start: tuple[float, float] | None = None
        self._loss = self._speed = 0.0
        self._f1 = "–"  # noqa: RUF001

    def show(self, report: Report) -> None:
        """Updates the bar, or prints the result of a validation."""
        from misgnet.training import StepReport  # imported late: it imports torch, which --help does not need

        if isinstance(report, StepReport):
            self._show_step(report)
        else:
            self._show_validation(report)

    def _show_step(self, step: StepReport) -> None:
        weight = 0.1 if self._start else 1.0
        self._loss += weight * (step.loss - self._loss)
        self._speed += weight * (step.pairs_per_second - self._speed)
        left = self._time_left(step.share)
        speed = "" if self._narrow else f"{self._speed:.1f} pairs/s, "
        now = f"loss {self._loss:.3f}, F1 {self._f1}, {speed}{left} left"
        self._bars.update(self._bar, completed=step.share, description=f"epoch {step.epoch + 1}", now=now)

    def _show_validation(self, found: EpochReport) -> None:
        self._f1 = "n/a" if found.f1 is None else f"{found.f1:.4f}"
        loss = "" if found.train_loss is None else f"loss {found.train_loss:.4f}, "
        best = " (best so far)" if found.best else ""
        done = f"{_clock(found.seconds)}, {plural(found.epoch, 'epoch')}, {plural(found.step, 'step')}"
        text = f"{done}: {loss}validation F1 {self._f1}{best}"
        self._bars.console.print(text, highlight=False, soft_wrap=True)

    def _time_left(self, share: float) -> str:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, share)
        start, first = self._start
        return _clock((now - start) * (1 - share) / (share - first)) if share > first else "–:––"  # noqa: RUF001

    def __enter__(self) -> TrainingDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bars.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
