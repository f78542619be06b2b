"""The edge of every command line: errors become one line on stderr and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
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
    """All commands of an app; the app's own options are also taken after the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options: list[Any] = self.params
        shared = {word: int(not option.is_flag) for option in options for word in option.opts}
        with _printable_usage():
            return super().parse_args(ctx, _shared_first(args, shared))

    def invoke(self, ctx: Any) -> Any:
        for word in sys.argv[1:]:
            word.encode()  # else some libraries take a name that others do not
        try:
            with _printable_usage():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError(*error.args) from None
        except _WRONG_CALL as error:
            if log.is_json():
                raise UsageError(error.format_message()) from error
            raise


@contextmanager
def _printable_usage() -> Iterator[None]:
    """What was typed is shown in messages about a wrong call, which typer prints by itself."""
    try:
        yield
    except _WRONG_CALL as error:
        error.message = printable(error.message)
        raise


def _shared_first(words: list[str], shared: Mapping[str, int]) -> list[str]:
    """Every option of ``shared``, with so many words behind it, moved to the front.

    What follows ``--`` stays as it is.
    """
    end = words.index("--") if "--" in words else len(words)
    moved: list[str] = []
    others: list[str] = []
    rest = iter(words[:end])
    for word in rest:
        if word in shared:
            moved += [word, *islice(rest, shared[word])]
        else:
            (moved if word.split("=")[0] in shared else others).append(word)
    return moved + others + words[end:]
