"""Logs a command's events as text, or with ``--log json`` as one JSON object per line.

Based on the standard :mod:`logging`: the caller sets the level, a formatter the format. Every JSON object has ``time``
(RFC 3339, UTC), ``level`` (debug, info, warning or error), ``event``, and ``message``, the text of the text format.
The other fields depend on ``event``; null means not applicable or not a finite number:

    debug     what a command does and how long it takes, with the same fields as ``note``; only if requested
    note      information about a run; ``watch`` adds ``pair``, and ``batch`` adds ``scene``, if it concerns one
    warning   a possible problem, with the same fields as ``note``
    progress  ``steps`` (the unit that is counted), ``done`` and ``total``; at most one per second
    result    the fields of the command's report, as numbers
    error     the reason why a command ends: ``kind`` and ``exit_code``; for a bug also ``traceback``

Results go to stdout and all other events to stderr, in both formats. In text, control characters are escaped, and lines
start with the time if requested. Results are written at every level.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from misgnet_runtime.errors import StorageError
from misgnet_runtime.formatting import printable

if TYPE_CHECKING:
    from misgnet_runtime.callables import Progress

    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter

LogFormat = Literal["text", "json"]


class SafeConsole(Console):
    """A console that escapes control characters in all texts, except line ends.

    With ``NO_COLOR`` it prints no styles at all; Rich on its own would keep bold and dim text.
    """

    def __init__(self, **options: Any) -> None:
        if os.environ.get("NO_COLOR"):
            options.setdefault("color_system", None)
        super().__init__(**options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(_printable_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(_printable_lines(segment.text), segment.style)


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


err_console = SafeConsole(stderr=True, emoji=False)  # a path may hold :car:
out_console = SafeConsole(emoji=False)
_SECONDS = 1.0  # between two progress events
_STANDARD = ("exc_info", "stack_info", "stacklevel")
_EVENTS = {logging.DEBUG: "debug", logging.INFO: "note", logging.WARNING: "warning"}


@dataclass
class _Settings:
    """How this process writes its events."""

    form: LogFormat = "text"
    level: int = logging.INFO  # the lowest level that is written
    timestamps: bool = False  # whether lines of text start with the time


_settings = _Settings()


class EventLog(_Adapter):
    """A logger whose events have fields: ``log.warning("blocks are missing", pair="a")``.

    ``info``, ``warning`` and ``error`` are the methods of :class:`logging.LoggerAdapter`; all other keyword arguments
    become fields.
    """

    def __init__(
        self, logger: logging.Logger, fields: dict[str, object] | None = None, warnings: list[str] | None = None
    ) -> None:
        super().__init__(logger, fields or {})
        self.warnings = warnings  # those that were logged, if this log remembers them

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if level >= logging.WARNING and self.warnings is not None:
            self.warnings.append(str(msg) % args if args else str(msg))
        super().log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        standard = {name: kwargs.pop(name) for name in _STANDARD if name in kwargs}
        event = kwargs.pop("event", None)
        return msg, {**standard, "extra": {"event": event, "fields": {**(self.extra or {}), **kwargs}}}

    def bind(self, **fields: object) -> EventLog:
        """Returns a log that adds ``fields`` to every event."""
        return EventLog(self.logger, {**(self.extra or {}), **fields}, self.warnings)

    def remembering(self, earlier: Iterable[str] = ()) -> EventLog:
        """Returns a log that writes as this one, and remembers its warnings besides ``earlier`` ones."""
        return EventLog(self.logger, dict(self.extra or {}), [*earlier])

    def result(self, lines: list[str], **figures: Any) -> None:
        """Logs a result: ``lines`` in text format, ``figures`` as fields in JSON."""
        self.info("\n".join(line.replace("\n", "\\n") for line in lines), event="result", **figures)

    def fail(self, message: str, kind: str, exit_code: int) -> None:
        """Logs why the command ends; ``message`` is one line."""
        self.error(message, event="error", kind=kind, exit_code=exit_code)

    def bug(self, error: Exception) -> None:
        """Logs an unexpected error with its traceback; in text format it is raised again, so that Python prints it."""
        if not is_json():
            raise error
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.error(str(error), event="error", kind=type(error).__name__, exit_code=1, traceback=trace)

    @contextmanager
    def progress(self, steps: str, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
        """Yields a function ``(done, total)`` that reports progress, counted in ``steps``.

        JSON events are written at most once per second of ``clock``.
        """
        if is_json():
            yield _at_most_one_a_second(
                lambda done, total: self.info(
                    f"{done} of {total} {steps}", event="progress", steps=steps, done=done, total=total
                ),
                clock,
            )
            return
        if is_quiet() or not err_console.is_terminal:  # Rich before 14.3 ends a disabled bar with an empty line
            yield lambda *_: None
            return
        from rich.progress import Progress as Bars

        with Bars(console=err_console, transient=True) as bars:
            task = bars.add_task(steps, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


class TextFormatter(logging.Formatter):
    """Formats events as text; warnings and errors start with their level. Control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        if not _settings.timestamps:
            return self._text(record)
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        return "\n".join(f"{time.replace('+00:00', 'Z')} {line}" for line in self._text(record).splitlines())

    def _text(self, record: logging.LogRecord) -> str:
        message, event = record.getMessage(), _event(record)
        if event == "result":
            return _printable_lines(message)
        interrupted = getattr(record, "fields", {}).get("kind") == "interrupted"
        level = "" if record.levelno < logging.WARNING or interrupted else f"{record.levelname.lower()}: "
        return level + printable(message)


class JsonFormatter(logging.Formatter):
    """Formats each event as one line of JSON; see the module's docstring."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        found = {
            "time": datetime.fromtimestamp(record.created, timezone.utc),
            "level": record.levelname.lower(),
            "event": _event(record),
            "message": message.replace("\n", "; ") if _event(record) == "result" else message,
            **getattr(record, "fields", {}),
        }
        try:
            return msgspec.json.encode(found, enc_hook=str).decode()
        except UnicodeEncodeError:  # a file name that is not UTF-8
            return msgspec.json.encode(_escaped(msgspec.to_builtins(found, enc_hook=str))).decode()


class _StreamHandler(logging.Handler):
    """Writes results to stdout and all other events to stderr.

    The streams are looked up at each event, because tests replace them. If the disk is too full for the log, the event
    is dropped and the work continues.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= _settings.level or _event(record) == "result":
            with suppress(StorageError):
                self._write(record)

    def _write(self, record: logging.LogRecord) -> None:
        result = _event(record) == "result"
        text = self.format(record)
        if is_json():
            stream = sys.stdout if result else sys.stderr
            stream.write(text + "\n")
            stream.flush()
        elif text:
            (out_console if result else err_console).print(text, soft_wrap=True, highlight=False, markup=False)


class _ListHandler(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


_LOGGER = logging.getLogger("misgnet")
_LOGGER.addHandler(logging.NullHandler())  # else Python prints warnings to stderr in programs that set up no logging
_HANDLER = _StreamHandler()
_FORMATTERS: dict[LogFormat, logging.Formatter] = {"text": TextFormatter(), "json": JsonFormatter()}


def current() -> EventLog:
    """Returns the log of this process."""
    return EventLog(_LOGGER)


def use(form: LogFormat) -> LogFormat:
    """Writes all events of this process to its streams in ``form``; only commands call it, not importing programs."""
    _settings.form = form
    _HANDLER.setFormatter(_FORMATTERS[form])
    _LOGGER.setLevel(min(_settings.level, logging.INFO))  # the handler also drops what is below a higher level
    _LOGGER.propagate = False
    _LOGGER.addHandler(_HANDLER)  # adding the same handler again has no effect
    warnings.showwarning = _python_warning  # type: ignore[assignment]
    return form


def use_level(level: int) -> None:
    """Writes events from this level of :mod:`logging` on, and results; default: ``logging.INFO``."""
    _settings.level = level
    _LOGGER.setLevel(min(level, logging.INFO))


def use_timestamps(wanted: bool) -> None:
    """Sets whether each line of the text format starts with the time (RFC 3339, UTC)."""
    _settings.timestamps = wanted


def level() -> int:
    """Returns the lowest level that is written."""
    return _settings.level


def is_quiet() -> bool:
    """Returns whether only warnings, errors and results are written."""
    return _settings.level > logging.INFO


def unless_quiet(console: Console) -> Console:
    """Returns a console for progress and intermediate findings: ``console``, or one that prints nothing."""
    return Console(quiet=True) if is_quiet() else console


def is_json() -> bool:
    """Returns whether events are written as JSON."""
    return _settings.form == "json"


def collector() -> tuple[EventLog, list[logging.LogRecord]]:
    """Returns a log that writes nothing, and the list that its events are appended to."""
    logger, records = logging.Logger("misgnet.collected", logging.INFO), list[logging.LogRecord]()
    logger.addHandler(_ListHandler(records))
    return EventLog(logger), records


def _event(record: logging.LogRecord) -> str:
    return getattr(record, "event", None) or _EVENTS.get(record.levelno, "note")


def _python_warning(message: Warning | str, *_where: object) -> None:
    """Logs a library's warning on one line; replaces :func:`warnings.showwarning`."""
    current().warning(" ".join(str(message).split()))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _at_most_one_a_second(progress: Progress, clock: Callable[[], float]) -> Progress:
    last = float("-inf")

    def report(done: int, total: int) -> None:
        nonlocal last
        if (now := clock()) - last >= _SECONDS:
            last = now
            progress(done, total)

    return report
