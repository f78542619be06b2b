"""Reads and writes the options of a command as a TOML file, from the one statement of them.

source = "net.onnx"                  # every option under its name without dashes in front
calib = "tiles/train"                # relative paths start from the folder of this file
target = ["cpu", "rtx-sm86"]         # an option that may be repeated is a list

[model]                              # the options that describe the network; accepted outside, too
model-io = "stacked"
mean = [0.485, 0.456, 0.406]
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from misgnet_export.sources.options import kind_of
from misgnet_runtime.bundle.targets import Target
from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import Stated, stated
from misgnet_runtime.storage.config import option_value, read_toml, shown_value, unknown_name

_HEAD = "Options of misgnet-export build, for --config. Relative paths start from the folder of this file."
_WIDTH = 100  # of comments


def read_config(path: Path, of: type) -> dict[str, Any]:
    """Returns the values in the file ``path`` by the names of the options of the class ``of``, for ``make``.

    Raises:
        InputError: The file is missing or cannot be read.
        UsageError: The file is too large or not TOML, or a name or the type of a value is wrong.
    """
    entries = _entries(path, read_toml(path, f"--config {path}"), of)
    return {one.name: _value(path, one, value) for one, value in entries.values()}


def write_config(options: Any, *, comments: bool = True) -> str:
    """Returns all values of ``options`` as TOML; options without a value are left out, or commented out.

    Args:
        options: An object of a class of options; required options may be None.
        comments: Whether the help text of each option precedes it.
    """
    lines = _comment(_HEAD) if comments else []
    table = ""
    for one in stated(type(options)).values():
        if len(one.path) > 1 and one.path[0] != table:
            table = one.path[0]
            lines += ["", f"[{table}]"]
        lines += _lines(one, one.value_in(options), comments)
    return "\n".join(lines) + "\n"


def _entries(path: Path, found: dict[str, Any], of: type) -> dict[str, tuple[Stated, Any]]:
    """Returns the entries of the file and of its tables by name, each with its option."""
    known = {_key(one.name): one for one in stated(of).values()}
    tables = dict.fromkeys(one.path[0] for one in known.values() if len(one.path) > 1)
    entries: dict[str, tuple[Stated, Any]] = {}
    for key, value in _flat(path, found, tables):
        name = _key(key)
        if name not in known:
            reason = unknown_name(key, value, [*known, *tables], "see `misgnet-export build --help`")
            raise UsageError(f"--config {path}: {reason}")
        if name in entries:
            raise UsageError(f"--config {path} has '{name}' twice; leave one out")
        entries[name] = known[name], value
    return entries


def _flat(path: Path, found: dict[str, Any], tables: Mapping[str, None]) -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        if key not in tables:
            yield key, value
        elif isinstance(value, dict):
            yield from value.items()
        else:
            raise UsageError(f"--config {path}: '{key}' is {shown_value(value)}; expected the table [{key}]")


def _value(path: Path, one: Stated, found: Any) -> Any:
    """Returns a value as ``make`` accepts it; a source is relative to the file, too."""
    value = option_value(one, found, path.parent, f"--config {path}")
    return _beside(path.parent, value) if one.option.positional else value


def _beside(folder: Path, source: str) -> str:
    """Returns the source of a build, relative to the file's folder unless it is a factory in an installed package."""
    module = source.rpartition(":")[0]
    packaged = kind_of(source) == "pytorch" and not module.endswith(".py")
    return source if packaged or folder == Path() else str(folder / source)


def _lines(one: Stated, value: Any, comments: bool) -> list[str]:
    """Returns the lines of an option: its help, and its name and value."""
    about = ["", *_comment(one.option.help)] if comments else []
    if value is None:
        return [*about, f"# {_key(one.name)} ="] if comments else []
    return [*about, f"{_key(one.name)} = {_toml(not value if one.inverted else value)}"]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    text = value.name if isinstance(value, Target) else str(value)
    return "".join(map(_printable, json.dumps(text, ensure_ascii=False)))


def _printable(character: str) -> str:
    """Returns a character of a TOML string; one that a terminal obeys or hides is escaped."""
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _key(name: str) -> str:
    return name.replace("_", "-")
