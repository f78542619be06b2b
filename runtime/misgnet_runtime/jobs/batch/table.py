"""The table of scenes: CSV with the columns ``id``, ``before``, ``after``, and options of predict as further ones."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.jobs.batch.row import RowOptions, Scene
from misgnet_runtime.limits import TABLE_BYTES, TABLE_LINES, TABLE_ROW
from misgnet_runtime.options import stated
from misgnet_runtime.storage.files import is_file, is_not_regular_file

_NEEDED = ("id", "before", "after")
# What spreadsheets take for the beginning of a formula, also in full width.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_LONGEST = 200  # bytes of an id: file systems allow 255 for a name with its ending


@dataclass(frozen=True)
class Shard:
    """The part ``index`` of ``count`` equal ones, from 0: every ``count``-th scene."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """From "3/8"; UsageError for anything else."""
        if text is None:
            return cls()
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UsageError(f"--shard is '{text}'; it is INDEX/COUNT, counted from 0: 0/8 to 7/8 are all of 8 parts")
        return cls(int(index), int(count))

    def of(self, scenes: list[Scene]) -> list[Scene]:
        """Stays the same where scenes are added at the end."""
        return scenes[self.index :: self.count]

    @property
    def suffix(self) -> str:
        """For the names of this part's files: "" of the whole."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"


def read_table(path: Path, common: Mapping[str, str], output: Path) -> list[Scene]:
    """The scenes of a table; ``common``: options of those whose own cell is empty. Relative paths begin at the table.

    What is wrong with the table as a whole raises InputError before anything runs: no such file, a missing or unknown
    column, an id that is no file name, two scenes of one id or output, an output that is an input. A cell that
    cannot be meant is its scene's own failure.
    """
    _check_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            scenes = list(_scenes(_Rows(file, path), path, common))
    except OSError as error:
        raise InputError(f"table {path} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeError) as error:
        raise InputError(f"table {path} is no CSV in UTF-8: {error}") from error
    if not scenes:
        raise InputError(f"table {path} has no scenes below its header")
    _check_outputs(scenes, path, output)
    return scenes


def _check_file(path: Path) -> None:
    if is_not_regular_file(path):
        raise InputError(f"table {path} is not a regular file")
    if is_file(path) and (size := path.stat().st_size) > TABLE_BYTES:
        raise InputError(f"table {path} has {size} bytes, and {TABLE_BYTES} are the most; cut it into several")


class _Rows:
    """The rows of a CSV file; InputError where it has too many lines, or a row too many characters.

    A row may take many lines, and a line many rows' memory: both are counted as they are read.
    """

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._lines = self._length = 0

    def __iter__(self) -> Iterator[list[str]]:
        for row in csv.reader(self._read_lines()):
            self._length = 0
            yield row

    def _read_lines(self) -> Iterator[str]:
        while line := self._file.readline(TABLE_ROW + 1):
            self._lines += 1
            self._length += len(line)
            if self._lines > TABLE_LINES:
                raise InputError(f"table {self._path} has more than {TABLE_LINES} lines; cut it into several")
            if self._length > TABLE_ROW:
                raise InputError(
                    f"table {self._path}: the row that ends in line {self._lines} has more than {TABLE_ROW} characters"
                )
            yield line


def _scenes(rows: _Rows, path: Path, common: Mapping[str, str]) -> Iterator[Scene]:
    found = iter(rows)
    columns, folder = _columns(next(found, []), path), str(path.parent.absolute())
    lines: dict[str, int] = {}
    for line, row in enumerate(found, 2):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) > len(columns):
            raise InputError(f"table {path}, row {line} has {len(cells)} cells for {len(columns)} columns")
        words = {column: cell for column, cell in zip(columns, cells, strict=False) if cell}
        name = _checked_id(words.pop("id", ""), path, line)
        if name in lines:
            raise InputError(f"table {path}, rows {lines[name]} and {line} both have the id '{name}'; ids are unique")
        lines[name] = line
        if any("\0" in cell for cell in cells):
            raise InputError(f"table {path}, row {line} holds a zero byte, which no file's name has")
        before, after = (_address(folder, words.pop(date, "")) for date in ("before", "after"))
        yield Scene(name, before, after, {**common, **words} if words else common)


def _columns(header: list[str], path: Path) -> list[str]:
    """Names of columns, also written as on the command line: ``--min-area`` is ``min_area``."""
    found = [name.strip().lower().removeprefix("--").replace("-", "_") for name in header]
    missing = [name for name in _NEEDED if name not in found]
    unknown = [name for name in found if name not in (*_NEEDED, *stated(RowOptions))]
    for problem, names in (("lacks the columns", missing), ("has unknown columns", unknown)):
        if names:
            known = f"{', '.join(_NEEDED)}, and options of predict: {', '.join(stated(RowOptions))}"
            raise InputError(f"table {path} {problem} {', '.join(map(repr, names))}; it has {known}")
    if len(set(found)) < len(found):
        raise InputError(f"table {path} has a column twice: {', '.join(found)}")
    return found


def _checked_id(name: str, path: Path, line: int) -> str:
    wrong = not name or name.startswith((".", *FORMULA)) or "/" in name or not name.isprintable()
    if wrong or len(os.fsencode(name)) > _LONGEST:
        raise InputError(
            f"table {path}, row {line}: the id is '{name}'; outputs are named after it, so it is a file name without "
            f"'/', of at most {_LONGEST} bytes, and does not begin with a dot, '=', '+', '-' or '@'"
        )
    return name


def _address(folder: str, cell: str) -> Path:
    """A file's path; none for an empty cell."""
    return Path(f"{folder}/{cell}" if cell[:1] != "/" else cell) if cell else Path()


def _check_outputs(scenes: Sequence[Scene], path: Path, output: Path) -> None:
    taken: dict[str, str] = {}
    for scene in scenes:
        try:
            names = scene.outputs().values()
        except UsageError:  # reported when the scene's turn comes
            continue
        for name in names:
            if name in taken:
                raise InputError(f"table {path}: '{taken[name]}' and '{scene.id}' would both become {name}")
            taken[name] = scene.id
    _refuse_inputs(taken, scenes, str(output.absolute()))


def _refuse_inputs(names: Mapping[str, str], scenes: Sequence[Scene], output: str) -> None:
    """UsageError where an output is an input, by its path or as the same file by another one.

    As :func:`misgnet_runtime.storage.atomic.refuse_inputs`, without a look at every folder of every path.
    """
    paths = {os.path.normpath(str(date)) for scene in scenes for date in (scene.before, scene.after)}
    files = {_identity(date) for date in paths}
    for name in names:
        found = os.path.normpath(f"{output}/{name}")
        if found in paths or ((identity := _identity(found)) is not None and identity in files):
            raise UsageError(f"output {found} is an input as well; choose another -o")


def _identity(path: str) -> tuple[int, int] | None:
    with suppress(OSError, ValueError):
        status = os.stat(path)  # noqa: PTH116 - a hundred thousand of them
        return status.st_dev, status.st_ino
    return None
