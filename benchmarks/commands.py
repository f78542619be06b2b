"""What the commands of benchmarks have in common: how they take options, and how they end with an error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.machine import usable_cores


@contextmanager
def told_errors() -> Iterator[None]:
    """An error of this project's ends the command: one line on stderr, and its exit code."""
    try:
        yield
    except MisgnetError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def new_parser(name: str, words: str | None) -> argparse.ArgumentParser:
    """Of ``python -m benchmarks.NAME``; ``words`` are shown as they stand. All write their figures as JSON."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=words, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all figures as JSON")
    return parser


def add_contest_options(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Those of a contest between engines; ``seconds``: of a contender in a round, if nothing else is asked."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    add = parser.add_argument
    add("start", type=Path, metavar="BUNDLE|WEIGHTS", help="a bundle's folder, or a checkpoint")
    add("--weights", type=Path, help="the checkpoint that BUNDLE was built from")
    add("--calib", type=Path, required=True, help="folder of A/ B/ label/ that calibrates every contender")
    add("--val", type=Path, help="folder of A/ B/ label/ for the decisions of a build from WEIGHTS")
    add("--eval", type=Path, required=True, dest="evaluation", help="folder of A/ B/ label/ that judges")
    add("--cache", type=Path, default=home / "misgnet-int8-peers", help="where the environments are kept")
    add("--keep", type=Path, help="keep graphs, tiles, answers and logs here; the next run takes what fits from it")
    add("--threads", type=int, default=usable_cores(), help="threads of an engine [all cores]")
    add("--rounds", type=int, default=5, help="rounds of each timing [5]")
    add("--seconds", type=float, default=seconds, help=f"seconds of a contender in a round [{seconds:g}]")
    add("--limit", type=float, default=30.0, help="minutes that one step of a contender may take [30]")
