"""Shared code of the benchmark commands: option parsing and error reporting."""

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
def report_errors() -> Iterator[None]:
    """Converts an error of this project to one line on stderr and its exit code."""
    try:
        yield
    except MisgnetError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def new_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Returns a parser for ``python -m benchmarks.NAME`` that has --json and shows ``description`` unformatted."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="Write all figures as JSON to this file.")
    return parser


def add_contest_options(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Adds the options of a comparison between engines; ``seconds``: default time per contender and round."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    add = parser.add_argument
    add("start", type=Path, metavar="BUNDLE|WEIGHTS", help="A bundle folder, or a checkpoint.")
    add("--weights", type=Path, help="The checkpoint that BUNDLE was built from.")
    add("--calib", type=Path, required=True, help="Folder of A/ B/ label/ used to calibrate every contender.")
    add("--val", type=Path, help="Validation folder of A/ B/ label/ for a build from WEIGHTS.")
    add("--eval", type=Path, required=True, dest="evaluation", help="Folder of A/ B/ label/ used for evaluation.")
    add("--cache", type=Path, default=home / "misgnet-int8-peers", help="Folder of the contenders' environments.")
    add("--keep", type=Path, help="Keep graphs, tiles, predictions and logs here; later runs reuse unchanged ones.")
    add("--threads", type=int, default=usable_cores(), help="Threads of each engine (default: all cores).")
    add("--rounds", type=int, default=5, help="Rounds of each timing (default: 5).")
    add("--seconds", type=float, default=seconds, help=f"Seconds per contender and round (default: {seconds:g}).")
    add("--limit", type=float, default=30.0, help="Time limit in minutes for one step of a contender (default: 30).")
