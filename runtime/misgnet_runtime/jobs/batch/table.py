"""Reads the table of scenes: a CSV with the columns ``id``, ``before``, ``after``, options of predict, and others."""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.jobs.batch.columns import Columns, read_columns, separator_of
from misgnet_runtime.jobs.batch.row import Scene
from misgnet_runtime.limits import TABLE_BYTES, TABLE_LINES, TABLE_ROW
from misgnet_runtime.raster.remote.address import is_address
from misgnet_runtime.storage.files import is_file, is_not_regular_file

# Characters that start a formula in spreadsheets, including the full-width forms.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_LONGEST = 200  # bytes of an id: file systems allow 255 bytes for a file name with its extension


@dataclass(frozen=True)
class Shard:
    """Part ``index`` (from 0) of ``count`` equal parts: every ``count``-th scene."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """Parses text such as "3/8"; raises UsageError for anything else."""
        if text is None:
            return cls()
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UsageError(f"--shard is '{text}'; expected INDEX/COUNT, counted from 0, such as 0/8 to 7/8")
        return cls(int(index), int(count))

    def of(self, scenes: list[Scene]) -> list[Scene]:
        """Returns the scenes of this part. Appending scenes to the table does not move the others between parts."""
        return scenes[self.index :: self.count]

    @property
    def suffix(self) -> str:
        """Returns the suffix of this part's file names; "" for the whole table."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"


def read_table(path: Path, common: Mapping[str, str], output: Path) -> list[Scene]:
    """Reads and checks a table of scenes. A cell with an invalid option does not raise; it fails its scene later.

    Args:
        path: The CSV file in UTF-8, with cells separated by commas, semicolons or tabs. Relative paths in it are
            relative to its folder; addresses stay as they are.
        common: Options of scenes whose own cell is empty.
        output: The output folder.

    Raises:
        InputError: The file is missing or not a CSV, a column is missing or misspelt, an id is not a valid file name,
            or two scenes have the same id or output.
        UsageError: An output is also an input.
    """
    _check_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = separator_of(file.readline(TABLE_ROW))
            file.seek(0)
            scenes = list(_scenes(_Rows(file, path, separator), path, common))
    except OSError as error:
        raise InputError(f"table {path} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise InputError(f"table {path} is not a CSV file in UTF-8: {error}; {_how_to_convert(path)}") from error
    except csv.Error as error:
        raise InputError(f"table {path} is not a CSV file: {error}") from error
    if not scenes:
        raise InputError(f"table {path} has no scenes below its header")
    _check_outputs(scenes, path, output)
    return scenes


def _check_file(path: Path) -> None:
    if is_not_regular_file(path):
        raise InputError(f"table {path} is not a regular file")
    if is_file(path) and (size := path.stat().st_size) > TABLE_BYTES:
        raise InputError(f"table {path} has {size} bytes, but at most {TABLE_BYTES} are accepted; split it")


def _how_to_convert(path: Path) -> str:
    """Returns what to do with a file that is not UTF-8, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"PK"):
        return "it is a workbook or an archive; save it as 'CSV UTF-8'"
    form = "UTF-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
    name = shlex.quote(str(path))
    return f"save it as 'CSV UTF-8', or convert it: iconv -f {form} -t UTF-8 {name} > utf8.csv"


class _Rows:
    """Iterates over the rows of a CSV file; raises InputError for too many lines or too many characters in a row.

    A quoted row may span many lines, and one line may be very long, so both are counted while reading.
    """

    def __init__(self, file: TextIO, path: Path, separator: str) -> None:
        self._file, self._path, self.separator = file, path, separator
        self._lines = self._length = 0

    def __iter__(self) -> Iterator[list[str]]:
        for row in csv.reader(self._read_lines(), delimiter=self.separator):
            self._length = 0
            yield row

    def _read_lines(self) -> Iterator[str]:
        while line := self._file.readline(TABLE_ROW + 1):
            self._lines += 1
            self._length += len(line)
            if self._lines > TABLE_LINES:
                raise InputError(f"table {self._path} has more than {TABLE_LINES} lines; split it")
            if self._length > TABLE_ROW:
                raise InputError(
                    f"table {self._path}: the row that ends at line {self._lines} has more than {TABLE_ROW} characters"
                )
            yield line


def _scenes(rows: _Rows, path: Path, common: Mapping[str, str]) -> Iterator[Scene]:
    found = iter(rows)
    columns, folder = read_columns(next(found, []), rows.separator, path), str(path.parent.absolute())
    lines: dict[str, int] = {}
    for line, row in enumerate(found, 2):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        _check_cells(cells, columns, path, line)
        words = {name: cells[place] for place, name in columns.read.items() if place < len(cells) and cells[place]}
        kept = {name: cells[place] if place < len(cells) else "" for place, name in columns.kept.items()}
        name = _checked_id(words.pop("id", ""), path, line)
        if name in lines:
            raise InputError(
                f"table {path}, rows {lines[name]} and {line} both have the id '{name}'; ids must be unique"
            )
        lines[name] = line
        before, after = (_address(folder, words.pop(date, "")) for date in ("before", "after"))
        if "aoi" in words:
            words["aoi"] = str(_address(folder, words["aoi"]))
        yield Scene(name, before, after, {**common, **words} if words else common, kept)


def _check_cells(cells: list[str], columns: Columns, path: Path, line: int) -> None:
    if len(cells) > columns.count:
        raise InputError(
            f"table {path}, row {line} has {plural(len(cells), 'cell')} for {plural(columns.count, 'column')}"
        )
    for place, cell in enumerate(cells):
        if cell and place not in columns.read and place not in columns.kept:
            raise InputError(f"table {path}, row {line}: '{cell}' is in a column without a name; name it in the header")
    if any("\0" in cell for cell in cells):
        raise InputError(f"table {path}, row {line} contains a null byte, which is invalid in file names")


def _checked_id(name: str, path: Path, line: int) -> str:
    wrong = not name or name.startswith((".", *FORMULA)) or "/" in name or not name.isprintable()
    if wrong or len(os.fsencode(name)) > _LONGEST:
        raise InputError(
            f"table {path}, row {line}: the id is '{name}'; outputs are named after it, so it must be a file name "
            f"without '/', of at most {_LONGEST} bytes, that does not start with a dot, '=', '+', '-' or '@'"
        )
    return name


def _address(folder: str, cell: str) -> Path | str:
    """Returns the path of a cell, or its text if it is an address; an empty path for an empty cell."""
    if is_address(cell):
        return cell
    return Path(f"{folder}/{cell}" if cell[:1] != "/" else cell) if cell else Path()


def _check_outputs(scenes: Sequence[Scene], path: Path, output: Path) -> None:
    taken: dict[str, str] = {}
    for scene in scenes:
        try:
            names = scene.outputs().values()
        except UsageError:  # the driver fails the scene and reports the reason
            continue
        for name in names:
            if name in taken:
                raise InputError(f"table {path}: scenes '{taken[name]}' and '{scene.id}' would both write {name}")
            taken[name] = scene.id
    _refuse_inputs(taken, scenes, str(output.absolute()))


def _refuse_inputs(names: Mapping[str, str], scenes: Sequence[Scene], output: str) -> None:
    """Raises UsageError if an output is also an input, by its path or as the same file under another path.

    Like :func:`misgnet_runtime.storage.atomic.refuse_inputs`, but without inspecting every folder of every path.
    """
    paths = {os.path.normpath(str(date)) for scene in scenes for date in scene.paths}
    files = {_identity(date) for date in paths}
    for name in names:
        found = os.path.normpath(f"{output}/{name}")
        if found in paths or ((identity := _identity(found)) is not None and identity in files):
            raise UsageError(f"output {found} is also an input; choose another -o")


def _identity(path: str) -> tuple[int, int] | None:
    with suppress(OSError, ValueError):
        status = os.stat(path)  # noqa: PTH116 - faster; a table may have 100,000 files
        return status.st_dev, status.st_ino
    return None
