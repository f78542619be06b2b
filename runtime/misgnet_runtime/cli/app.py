"""Builds and runs command-line apps: an error becomes one line on stderr and an exit code."""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from misgnet_runtime import log
from misgnet_runtime.cli import help as help_page
from misgnet_runtime.cli.completion import COMMAND, TYPED
from misgnet_runtime.cli.config import defaults_in_force
from misgnet_runtime.cli.mistakes import WRONG_CALL, check_paths, explain, unknown_command
from misgnet_runtime.cli.standard_streams import steady_streams
from misgnet_runtime.errors import InputError, MisgnetError, UsageError
from misgnet_runtime.formatting import printable
from misgnet_runtime.log import err_console, out_console

__all__ = ["err_console", "make_app", "out_console", "run_app"]

_OF_LOG = ("log", "quiet", "verbose", "timestamps")


def run_app(app: Callable[[], object]) -> None:
    """Runs a typer app and exits with 0, the exit code of a MisgnetError, 130 after Ctrl-C, or 1 after a bug.

    The text of a KeyboardInterrupt is logged; it may say what the command left behind.
    """
    log.use_level(logging.INFO)  # defaults, until the options are parsed
    log.use_timestamps(False)
    log.use("text")
    with steady_streams() as check:
        _run(app, check)


def _run(app: Callable[[], object], check: Callable[[], None]) -> None:
    try:
        with _usable_names():
            _finish(app, check)
    except MisgnetError as error:
        log.current().fail(" ".join(str(error).split()), type(error).__name__, error.exit_code)
        raise SystemExit(error.exit_code) from None
    except (_InterruptedError, KeyboardInterrupt) as error:
        log.current().fail(f"interrupted; {str(error) or 'nothing was left behind'}", "interrupted", 130)
        raise SystemExit(130) from None
    except Exception as error:
        log.current().bug(error)
        raise SystemExit(1) from None


def _finish(app: Callable[[], object], check: Callable[[], None]) -> None:
    """Runs the app and, if it succeeds, calls ``check``, which raises if its output was not written."""
    try:
        app()
    except SystemExit as error:  # a typer app also raises this when it succeeds
        if not error.code:
            check()
        raise
    check()


@contextmanager
def _usable_names() -> Iterator[None]:
    """Turns errors of names that are not UTF-8 or too long into InputError; no caller checks each path for them."""
    try:
        yield
    except UnicodeEncodeError as error:
        if not any("\ud800" <= character <= "\udfff" for character in error.object):
            raise
        name = printable(error.object)[:200]
        raise InputError(f"the name '{name}' is not in UTF-8; rename the file or folder") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = str(error.filename)
        raise InputError(f"{name[:80]}... has {len(name)} characters, which is too long for a name") from error


def make_app(name: str, help_text: str) -> typer.Typer:
    """Returns a typer app with the project's common settings: plain help pages, ``-h``, shell completion."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": help_page.MOST_COLUMNS}
    return _App(
        name=name, cls=_Group, help=help_text, no_args_is_help=True, pretty_exceptions_enable=False,
        rich_markup_mode=None, context_settings=settings,
    )  # fmt: skip


class _App(typer.Typer):
    """A typer app whose commands have plain help pages."""

    def command(self, name: str | None = None, **more: Any) -> Any:
        return super().command(name, **{"cls": _Command, **more})


class _Command(TyperCommand):
    """A command with a plain help page, which keeps its arguments as typed for messages about an invalid call."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        help_page.name_values(self.params)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[COMMAND] = ctx, tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        check_paths(ctx)
        if defaults := defaults_in_force():
            log.current().debug(f"defaults are read from {defaults.file}", file=defaults.file)
        started = time.monotonic()
        found = super().invoke(ctx)
        seconds = time.monotonic() - started
        log.current().debug(f"{ctx.info_name} took {seconds:.2f} s", seconds=seconds)
        return found

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click's signature
        return help_page.usage_pieces(self)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_page.page(self, ctx, formatter.width))


class _InterruptedError(Exception):
    """Replaces a KeyboardInterrupt, whose text typer would discard."""


class _Group(TyperGroup):
    """Commands of an app. The app's own options are accepted before the command and after it."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        help_page.name_values(self.params)
        for command in self.commands.values():
            command.params += map(_after_the_command, self.params)
            command.help = _unwrapped(command.help or "")

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_page.page(self, ctx, formatter.width))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[TYPED] = tuple(args)
        ctx.meta[COMMAND] = ctx, tuple(args)
        with self._explained(ctx):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            ctx.fail(unknown_command(ctx, args[0]))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        for argument in sys.argv[1:]:
            argument.encode()  # raises UnicodeEncodeError: libraries differ in the names that they accept
        try:
            with self._explained(ctx):
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError(*error.args) from None

    @contextmanager
    def _explained(self, ctx: Any) -> Iterator[None]:
        """Raises UsageError for an invalid call, in the requested log format; a call without arguments shows help."""
        try:
            yield
        except WRONG_CALL as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                raise
            self._apply_shared(ctx)
            raise UsageError(printable(explain(error, *ctx.meta[COMMAND]))) from error

    def _apply_shared(self, ctx: Any) -> None:
        """Applies the app's own options of an invalid call, before or after the command: --log selects its report."""
        parser = self.make_parser(ctx)
        parser.ignore_unknown_options = parser.allow_interspersed_args = True
        with suppress(WRONG_CALL):
            given, _, options = parser.parse_args(list(ctx.meta[TYPED]))
            for option in options:
                if option in self.params and option.name in _OF_LOG:
                    option.handle_parse_result(ctx, given, [])


def _unwrapped(text: str) -> str:
    """Returns a help text with one line per paragraph: typer keeps the source's line ends from the second on."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _after_the_command(option: Any) -> Any:
    """Returns an app's own option as an option of a command; if absent there, its value before the command holds."""
    found, use = copy(option), option.callback

    def use_if_given(ctx: Any, param: Any, value: Any) -> Any:
        source = ctx.get_parameter_source(param.name).name
        before = ctx.parent.get_parameter_source(param.name).name
        if use is not None and (source == "COMMANDLINE" or (source == "DEFAULT_MAP" and before != "COMMANDLINE")):
            use(ctx, param, value)

    found.callback, found.expose_value, found.rich_help_panel = use_if_given, False, "Every command"
    return found
