"""Stages of a build: each shows its progress while it runs, and its time and finding when it is done."""

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
    """One running stage; ``finding`` is what it found out, shown behind its name."""

    name: str
    progress: Callable[[int, int], None]
    finding: str = ""
    tell: Callable[[str], None] = lambda _: None  # what the stage is at, shown beside its name

    def phase_progress(self, _phase: str, done: int, of: int) -> None:
        """The progress of a compiler that also names its phases."""
        self.progress(done, of)


@dataclass
class StageLog:
    """Runs stages and keeps (name, seconds, finding) of each."""

    console: Console
    done: list[tuple[str, float, str]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage and show a bar that its ``progress(done, of)`` moves."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[count]}"),
                   TimeElapsedColumn())  # fmt: skip
        started = time.perf_counter()
        with Progress(*columns, console=self.console, transient=True) as bars:
            shown = escape(printable(name))
            task = bars.add_task(shown, total=None, count="")

            def move(done: int, of: int) -> None:
                bars.update(task, completed=done, total=of, count=f"{done}/{of}")

            def tell(text: str) -> None:
                bars.update(task, description=f"{shown}: {escape(printable(text))}")

            stage = Stage(name, move, tell=tell)
            yield stage
        seconds = time.perf_counter() - started
        self.done.append((name, seconds, stage.finding))
        finding = escape(printable(stage.finding))
        self.console.print(f"[green]done[/] {shown} [dim]{seconds:.1f} s[/] {finding}", soft_wrap=True, highlight=False)
