"""What a command says: lines for a person, or with ``--log json`` one JSON object a line.

Every object has ``time`` (RFC 3339, UTC), ``level`` (info, warning or error), ``event``, and ``message``, what a person
would have read. The others depend on ``event``; null is what does not apply, or is no number:

    note      what to know of a run; ``watch`` adds ``pair`` and ``batch`` ``scene`` where they speak of one
    warning   the same, where something may be wrong
    progress  ``steps``, what is counted, ``done`` and ``total``; at most one a second
    result    what was found or written: the fields of the command's report, as numbers
    error     why a command ends: ``kind`` and ``exit_code``; for a bug also ``traceback``

Results go to stdout and everything else to stderr, in both forms.
"""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, TextIO

import msgspec
from rich.console import Console

if TYPE_CHECKING:
    from misgnet_runtime.callables import Progress

LogFormat = Literal["text", "json"]
err_console = Console(stderr=True, emoji=False)  # a path may hold :car:
out_console = Console(emoji=False)
_WARNING = "warning: "
_SECONDS = 1.0  # between two progress events


class Log(ABC):
    """Where a command's words go."""

    @abstractmethod
    def note(self, message: str, **facts: object) -> None:
        """What a user should know; a message that begins with "warning: " is a warning."""

    @abstractmethod
    def result(self, lines: list[str], **figures: object) -> None:
        """What was found or written: for a person, and by name."""

    @abstractmethod
    def progress(self, steps: str) -> AbstractContextManager[Progress]:
        """A function to tell how many ``steps`` are done, and of how many."""

    @abstractmethod
    def error(self, message: str, kind: str, exit_code: int) -> None:
        """Why the command ends; ``message`` is one line."""

    @abstractmethod
    def bug(self, error: Exception) -> None:
        """An error that nobody foresaw; raised again for Python to show, or said."""


class TextLog(Log):
    """For a person: lines, and a bar where stderr is a terminal."""

    def note(self, message: str, **_: object) -> None:
        _print(err_console, message)

    def result(self, lines: list[str], **_: object) -> None:
        for line in lines:
            _print(out_console, line)

    @contextmanager
    def progress(self, steps: str) -> Iterator[Progress]:
        from rich.progress import Progress as Bars

        with Bars(console=err_console, transient=True, disable=not err_console.is_terminal) as bars:
            task = bars.add_task(steps, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    def error(self, message: str, kind: str, exit_code: int) -> None:  # noqa: ARG002 - the process says it
        print(message if kind == "interrupted" else f"error: {message}", file=sys.stderr)

    def bug(self, error: Exception) -> None:
        raise error


class JsonLog(Log):
    """For a program: see the module's text."""

    def note(self, message: str, **facts: object) -> None:
        level, event = ("warning", "warning") if message.startswith(_WARNING) else ("info", "note")
        self._write(sys.stderr, level, event, message.removeprefix(_WARNING), facts)

    def result(self, lines: list[str], **figures: object) -> None:
        self._write(sys.stdout, "info", "result", "; ".join(lines), figures)

    @contextmanager
    def progress(self, steps: str) -> Iterator[Progress]:
        yield _at_most_one_a_second(
            lambda done, total: self._write(
                sys.stderr, "info", "progress", f"{done} of {total} {steps}",
                {"steps": steps, "done": done, "total": total},
            )
        )  # fmt: skip

    def error(self, message: str, kind: str, exit_code: int) -> None:
        self._write(sys.stderr, "error", "error", message, {"kind": kind, "exit_code": exit_code})

    def bug(self, error: Exception) -> None:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        facts = {"kind": type(error).__name__, "exit_code": 1, "traceback": trace}
        self._write(sys.stderr, "error", "error", str(error), facts)

    def python_warning(self, message: Warning | str, *_where: object) -> None:
        """In the place of :func:`warnings.showwarning`."""
        self.note(f"{_WARNING}{message}")

    def _write(self, stream: TextIO, level: str, event: str, message: str, facts: dict[str, object]) -> None:
        found = {"time": datetime.now(timezone.utc), "level": level, "event": event, "message": message, **facts}
        stream.write(msgspec.json.encode(found, enc_hook=str).decode() + "\n")
        stream.flush()


_TEXT = TextLog()
_CURRENT: ContextVar[Log] = ContextVar("log")


def current() -> Log:
    """The log of this process."""
    return _CURRENT.get(_TEXT)


def use(form: LogFormat) -> LogFormat:
    """Say everything in ``form`` from now on."""
    log = JsonLog() if form == "json" else TextLog()
    if isinstance(log, JsonLog):
        warnings.showwarning = log.python_warning  # type: ignore[assignment]
    _CURRENT.set(log)
    return form


def _at_most_one_a_second(progress: Progress) -> Progress:
    last = float("-inf")

    def told(done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _SECONDS:
            last = now
            progress(done, total)

    return told


def _print(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
