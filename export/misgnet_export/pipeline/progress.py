"""Runs the stages of a build: shows progress while stages run, then their times and findings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import TypeVar, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from misgnet_runtime.bars import Bars
from misgnet_runtime.formatting import printable
from misgnet_runtime.machine import usable_cores

T = TypeVar("T")
U = TypeVar("U")


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


class StageLog:
    """Runs stages and keeps (name, seconds, finding) of each."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.done: list[tuple[str, float, str]] = []
        self._bars = _Bars(console)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Times a stage and shows a progress bar, which ``Stage.progress(done, of)`` updates."""
        self._check()
        shown, started = escape(printable(name)), time.perf_counter()
        with self._bars.bar(shown) as update:

            def move(done: int, of: int) -> None:
                self._check()
                update(completed=done, total=of, count=f"{done}/{of}")

            def show_status(text: str) -> None:
                self._check()
                update(description=f"{shown}: {escape(printable(text))}")

            stage = Stage(name, move, show_status=show_status)
            yield stage
        self._add(name, time.perf_counter() - started, stage.finding)

    def overlap(self, *calls: Callable[[StageLog], T]) -> list[T]:
        """Runs ``calls`` at the same time, one per core at most, and returns their results in the order of ``calls``.

        Each call gets its own log for its stages. Whatever finishes first, stages are logged in the order of ``calls``.
        If a call fails or Ctrl-C is pressed, calls that have not started are dropped and the others stop at their next
        step. The error is raised when none runs any more: of several errors, that of the first call.
        """
        stop = Event()
        branches = [_Branch(self, stop) for _ in calls]
        with ThreadPoolExecutor(min(len(calls), usable_cores())) as pool:
            try:
                running = [pool.submit(branch.run, call) for call, branch in zip(calls, branches, strict=True)]
                wait(running)
            except BaseException:  # Ctrl-C
                stop.set()
                raise
        for branch in branches:
            for finished in branch.done:
                self._add(*finished)
        for error in (one.exception() for one in running):
            if error is not None and not isinstance(error, CancelledError):
                raise error
        return [one.result() for one in running]

    def overlap_two(self, first: Callable[[StageLog], T], second: Callable[[StageLog], U]) -> tuple[T, U]:
        """Same as :meth:`overlap`, for two calls with results of different types."""
        calls: tuple[Callable[[StageLog], T | U], ...] = first, second
        found = self.overlap(*calls)
        return cast("T", found[0]), cast("U", found[1])

    def _add(self, name: str, seconds: float, finding: str) -> None:
        """Keeps and prints a finished stage."""
        self.done.append((name, seconds, finding))
        shown = f": {escape(printable(finding))}" if finding else ""
        line = f"[green]done:[/] {escape(printable(name))} [dim]({seconds:.1f} s)[/]{shown}"
        self.console.print(line, soft_wrap=True, highlight=False)

    def _check(self) -> None:
        """Raises CancelledError if the running stage must stop; only a branch ever must."""


class _Branch(StageLog):
    """The log of one of several overlapping calls; it prints nothing itself."""

    def __init__(self, parent: StageLog, stop: Event) -> None:
        super().__init__(parent.console)
        self._bars = parent._bars
        self._parent, self._stop = parent, stop

    def run(self, call: Callable[[StageLog], T]) -> T:
        """Returns the result of ``call``; if it fails, the other branches must stop."""
        self._check()
        try:
            return call(self)
        except BaseException:
            self._stop.set()
            raise

    def _add(self, name: str, seconds: float, finding: str) -> None:
        self.done.append((name, seconds, finding))

    def _check(self) -> None:
        self._parent._check()
        if self._stop.is_set():
            raise CancelledError


class _Bars:
    """The progress bars of all running stages, shown while there are any."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._changing = Lock()
        self._count = 0
        self._progress: Progress | None = None

    @contextmanager
    def bar(self, text: str) -> Iterator[Callable[..., None]]:
        """Adds a bar, and yields a function that takes the changes of ``Progress.update``."""
        progress = self._one_more()
        try:
            task = progress.add_task(text, total=None, count="")
            yield partial(progress.update, task)
            progress.remove_task(task)
        finally:
            self._one_less(progress)

    def _one_more(self) -> Progress:
        # In a narrow terminal, only the end of the description is cut.
        description = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True))
        columns = (SpinnerColumn(), description, BarColumn(12), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
        with self._changing:
            if self._progress is None:
                self._progress = Bars(*columns, console=self._console, transient=True, expand=True)
                self._progress.start()
            self._count += 1
            return self._progress

    def _one_less(self, progress: Progress) -> None:
        with self._changing:
            self._count -= 1
            if self._count == 0:
                progress.stop()
                self._progress = None
