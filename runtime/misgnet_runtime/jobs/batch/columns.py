"""Reads the header of a batch table: its separator, the required columns, options of predict, and columns to keep."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import printable
from misgnet_runtime.jobs.batch.row import RowOptions
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.options import stated

NEEDED = ("id", "before", "after")
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_SIMILAR = 0.8  # 0 to 1, as get_close_matches counts: a name this close to a known one is a typing error


@dataclass(frozen=True)
class Columns:
    """The columns of a table, by position."""

    # Names of those that are read: id, before, after and options.
    read: Mapping[int, str]
    # Names of the others, as in the table; their cells are copied into the results.
    kept: Mapping[int, str]
    # Number of columns, those without a name included.
    count: int


def separator_of(header: str) -> str:
    """Returns the character that separates the cells of a table whose first line is ``header``.

    It is the one with which the line has most of the required columns, and of those that are equal the comma.
    """

    def found(separator: str) -> int:
        names = next(csv.reader([header], delimiter=separator), [])
        return len({_normal(name) for name in names}.intersection(NEEDED))

    return max(SEPARATORS, key=found)


def read_columns(header: list[str], separator: str, path: Path) -> Columns:
    """Returns the columns; options may be written as on the command line, so ``--min-area`` is ``min_area``.

    Raises:
        InputError: A required column is missing, a name is given twice, or it is probably a misspelt option.
    """
    names = [_normal(name) for name in header]
    _check_needed(names, separator, path)
    known = (*NEEDED, *stated(RowOptions))
    read = {place: name for place, name in enumerate(names) if name in known}
    kept = {place: header[place].strip() for place, name in enumerate(names) if name and name not in known}
    named = [*read.values(), *kept.values()]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise InputError(f"{path}: duplicate {_named(twice)} (found: {_listed(names)})")
    for name in kept.values():
        _check_kept(name, known, path)
    return Columns(read, kept, len(header))


def _check_needed(names: list[str], separator: str, path: Path) -> None:
    if not (missing := [name for name in NEEDED if name not in names]):
        return
    found = f"found, separated by a {SEPARATORS[separator]}: {_listed(names)}"
    if len(names) == 1:
        found = f"found only {_listed(names)}; separate cells by commas, semicolons or tabs"
    raise InputError(f"{path}: missing required {_named(missing)} ({found})")


def _check_kept(name: str, known: tuple[str, ...], path: Path) -> None:
    if not name.isprintable():
        raise InputError(f"{path}: the column name '{printable(name)}' has control characters; rename it")
    if _normal(name) in stated(SceneOptions):
        raise InputError(f"{path}: column '{name}' is an option of the command only; remove the column")
    if close := get_close_matches(_normal(name), known, 1, _SIMILAR):
        raise InputError(
            f"{path}: unknown column '{name}', which is similar to '{close[0]}'; rename it. Columns of other names are "
            "copied into the results"
        )


def _normal(name: str) -> str:
    return name.strip().lower().removeprefix("--").replace("-", "_")


def _named(names: list[str]) -> str:
    return f"column{'' if len(names) == 1 else 's'} {', '.join(map(repr, names))}"


def _listed(names: list[str]) -> str:
    return printable(", ".join(name or "(no name)" for name in names))
