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
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from misgnet_export.sources.options import kind_of
from misgnet_runtime.bundle import MAX_CONFIG
from misgnet_runtime.bundle.targets import Target
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.formatting import printable
from misgnet_runtime.options import Stated, bare, stated
from misgnet_runtime.storage.files import is_not_regular_file, read_at_most

_HEAD = "Options of misgnet-export build, for --config. Relative paths start from the folder of this file."
_WIDTH = 100  # of comments
_LARGEST = 1 << 63  # whole numbers of TOML have 64 bits
_KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list", dict: "a table",
}  # fmt: skip


def read_config(path: Path, of: type) -> dict[str, Any]:
    """Returns the values in the file ``path`` by the names of the options of the class ``of``, for ``make``.

    Raises:
        InputError: The file is missing or cannot be read.
        UsageError: The file is too large or not TOML, or a name or the type of a value is wrong.
    """
    entries = _entries(path, _parsed(path), of)
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


def _parsed(path: Path) -> dict[str, Any]:
    import tomllib  # Python 3.11, as the compiler; its other commands run with 3.10

    if is_not_regular_file(path):
        raise InputError(f"--config {path} is not a regular file")
    try:
        data = read_at_most(path, MAX_CONFIG)
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror or error}") from error
    if data is None:
        raise UsageError(f"--config {path} is larger than {MAX_CONFIG} bytes, which is the limit")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path} is not valid TOML: {printable(str(error))[:300]}") from error


def _entries(path: Path, found: dict[str, Any], of: type) -> dict[str, tuple[Stated, Any]]:
    """Returns the entries of the file and of its tables by name, each with its option."""
    known = {_key(one.name): one for one in stated(of).values()}
    tables = dict.fromkeys(one.path[0] for one in known.values() if len(one.path) > 1)
    entries: dict[str, tuple[Stated, Any]] = {}
    for key, value in _flat(path, found, tables):
        name = _key(key)
        if name not in known:
            raise UsageError(f"--config {path}: {_unknown(key, value, [*known, *tables])}")
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
            raise UsageError(f"--config {path}: '{key}' is {_shown(value)}; expected the table [{key}]")


def _unknown(key: str, value: Any, names: list[str]) -> str:
    kind = "table" if isinstance(value, dict) else "option"
    near = get_close_matches(_key(key), names, 1)
    shown = printable(key[:60])
    return (
        f"there is no {kind} '{shown}'; {f'did you mean {near[0]}?' if near else 'see `misgnet-export build --help`'}"
    )


def _value(path: Path, one: Stated, found: Any) -> Any:
    """Returns a value as ``make`` accepts it: texts where the option parses them."""
    value, expected = _typed(one, found)
    if value is None:
        raise UsageError(f"--config {path}: '{_key(one.name)}' is {_shown(found)}; expected {expected}")
    try:
        if isinstance(value, str | list):
            one.parse(value)
    except UsageError as error:
        raise UsageError(f"--config {path}: {error}") from None
    if one.option.parse is None and bare(one.type) is Path:
        return path.parent / value
    return _beside(path.parent, value) if one.option.positional else value


def _typed(one: Stated, found: Any) -> tuple[Any, str]:
    """Returns the value of an option, or None if it has the wrong type, and the type that is expected."""
    if one.repeated:
        texts = found if isinstance(found, list) else [found]
        return texts if all(map(_is_text, texts)) else None, "a string or a list of strings"
    if one.option.parse is not None:
        several = _is_tuple(one.type)
        parts = found if several and isinstance(found, list) else [found]
        right = parts and all(_is_text(part) or _is_number(part) for part in parts)
        return ",".join(map(str, parts)) if right else None, "a number, a string or a list" if several else "text"
    kind = bare(one.type)
    if get_origin(kind) is Literal:
        return found if found in get_args(kind) else None, f"one of {', '.join(get_args(kind))}"
    if kind is bool:
        return found if isinstance(found, bool) else None, _KINDS[bool]
    if kind in (int, float):
        right = _is_number(found) and (kind is float or isinstance(found, int))
        return kind(found) if right else None, _KINDS[kind]
    return found if _is_text(found) and found else None, "a string that is not empty"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < _LARGEST)


def _is_tuple(kind: Any) -> bool:
    return any(get_origin(one) is tuple for one in (kind, *get_args(kind)))


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


def _shown(value: Any) -> str:
    """Returns a value of the file for a message."""
    kind = next((words for kind, words in _KINDS.items() if isinstance(value, kind)), "a date or a time")
    if kind in (_KINDS[list], _KINDS[dict]) or (type(value) is int and abs(value) >= _LARGEST):
        return kind if type(value) is not int else "a whole number of more than 64 bits"
    return f"{printable(str(value))[:60]!r} ({kind})" if isinstance(value, str) else str(value).lower()
