"""The edge of every command line: errors become one line on stderr and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer
from rich.console import Console

from misgnet_runtime.errors import MisgnetError

err_console = Console(stderr=True)
out_console = Console()


def run_app(app: Callable[[], object]) -> None:
    """Run a typer app; MisgnetError ends with its exit code, Ctrl-C with 130, a bug with a traceback and 1.

    A KeyboardInterrupt may say what it left behind.
    """
    try:
        app()
    except MisgnetError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt as error:
        print(f"interrupted; {error or 'nothing was left behind'}", file=sys.stderr)
        raise SystemExit(130) from None


def make_app(name: str, help_text: str) -> typer.Typer:
    """A typer app with the project's common settings."""
    return typer.Typer(
        name=name, help=help_text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )
