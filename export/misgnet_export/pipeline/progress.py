"""Runs the stages of a build: shows progress while a stage runs, then its time and finding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from misgnet_runtime.formatting import printable


@dataclass
class Stage:
    """One running stage."""

    name: str
    progress: Callable[[int, int], None]
    finding: str = ""  # result of the stage, shown after its name
    show_status: Callable[[str], None] = lambda _: None  # shows the current step next to the stage's name

    def phase_progress(self, _phase: str, done: int, of: int) -> None:
        """Progress callback for compilers that also report the name of their phase."""
        self.progress(done, of)


@dataclass
class StageLog:
    """Runs stages and keeps (name, seconds, finding) of each."""

    console: Console
    done: list[tuple[str, float, str]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Times a stage and shows a progress bar, which ``Stage.progress(done, of)`` updates."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[count]}"),
                   TimeElapsedColumn())  # fmt: skip
        started = time.perf_counter()
        with Progress(*columns, console=self.console, transient=True) as bars:
            shown = escape(printable(name))
            task = bars.add_task(shown, total=None, count="")

            def move(done: int, of: int) -> None:
                bars.update(task, completed=done, total=of, count=f"{done}/{of}")

            def show_status(text: str) -> None:
                bars.update(task, description=f"{shown}: {escape(printable(text))}")

            stage = Stage(name, move, show_status=show_status)
            yield stage
        seconds = time.perf_counter() - started
        self.done.append((name, seconds, stage.finding))
        finding = f": {escape(printable(stage.finding))}" if stage.finding else ""
        line = f"[green]done:[/] {shown} [dim]({seconds:.1f} s)[/]{finding}"
        self.console.print(line, soft_wrap=True, highlight=False)
