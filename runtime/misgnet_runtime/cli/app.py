"""The edge of every command line: errors become one line on stderr and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any

import typer
from typer.core import TyperGroup

from misgnet_runtime import log
from misgnet_runtime.cli.standard_streams import steady_streams
from misgnet_runtime.errors import InputError, MisgnetError, UsageError
from misgnet_runtime.formatting import printable
from misgnet_runtime.log import err_console, out_console

__all__ = ["err_console", "make_app", "out_console", "run_app"]

# Of click, which newer versions of typer bring along under another name.
_WRONG_CALL: Any = typer.BadParameter.__bases__[0]
_WORDS = "misgnet.words"  # in a context: all that was typed


def run_app(app: Callable[[], object]) -> None:
    """Run a typer app; MisgnetError ends with its exit code, Ctrl-C with 130, a bug with a traceback and 1.

    A KeyboardInterrupt may say what it left behind.
    """
    log.use("text")  # until an option says otherwise
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
    """Run the app, and where it succeeds ``check`` that what it printed was written."""
    try:
        app()
    except SystemExit as end:  # how a typer app succeeds, too
        if not end.code:
            check()
        raise
    check()


@contextmanager
def _usable_names() -> Iterator[None]:
    """Nobody asks of every path whether its name is in UTF-8, and one that the system can have."""
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
        raise InputError(f"{name[:80]}... has {len(name)} characters, which is too long for a name here") from error


def make_app(name: str, help_text: str) -> typer.Typer:
    """A typer app with the project's common settings."""
    return typer.Typer(
        name=name, cls=_Group, help=help_text, no_args_is_help=True, add_completion=False,
        pretty_exceptions_enable=False,
    )  # fmt: skip


class _InterruptedError(Exception):
    """A KeyboardInterrupt, which typer would take for an end without words."""


class _Group(TyperGroup):
    """All commands of an app; each also takes the app's own options, as it does before the command."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        for command in self.commands.values():
            command.params += map(_behind_the_command, self.params)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = tuple(args)
        with _printable_usage():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        for word in sys.argv[1:]:
            word.encode()  # else some libraries take a name that others do not
        try:
            with _printable_usage():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError(*error.args) from None
        except _WRONG_CALL as error:
            self._heed_shared(ctx)
            if log.is_json():
                raise UsageError(error.format_message()) from error
            raise

    def _heed_shared(self, ctx: Any) -> None:
        """Of a wrong call the app's own options still hold, wherever they stand: --log says how it is reported."""
        parser = self.make_parser(ctx)
        parser.ignore_unknown_options = parser.allow_interspersed_args = True
        with suppress(_WRONG_CALL):
            given, _, options = parser.parse_args(list(ctx.meta[_WORDS]))
            for option in options:
                if option in self.params and option.name != "version":  # nor --help
                    option.handle_parse_result(ctx, given, [])


def _behind_the_command(option: Any) -> Any:
    """An app's own option as one of a command: where it is not given there, what was said before the command holds."""
    found, use = copy(option), option.callback

    def use_if_given(ctx: Any, param: Any, value: Any) -> Any:
        if use is not None and ctx.get_parameter_source(param.name).name == "COMMANDLINE":
            use(ctx, param, value)

    found.callback, found.expose_value, found.rich_help_panel = use_if_given, False, "Every command"
    return found


@contextmanager
def _printable_usage() -> Iterator[None]:
    """What was typed is shown in messages about a wrong call, which typer prints by itself."""
    try:
        yield
    except _WRONG_CALL as error:
        error.message = printable(error.message)
        raise
