"""Reads values of options from TOML files, from the one statement of the options.

scale = 0.0001                       # numbers, texts, true and false by the type of the option
target = ["cpu", "rtx-sm86"]         # an option that may be repeated is a list
vector = "out/change.gpkg"           # relative paths start from the folder of the file
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.formatting import printable
from misgnet_runtime.limits import CONFIG_BYTES, CONFIG_DOTS
from misgnet_runtime.options import Stated, bare
from misgnet_runtime.storage.files import is_not_regular_file, read_at_most

_LARGEST = 1 << 63  # whole numbers of TOML have 64 bits
_KINDS = MappingProxyType({
    bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list", dict: "a table",
})  # fmt: skip


def read_toml(path: Path, source: str) -> dict[str, Any]:
    """Returns the entries of a TOML file.

    Args:
        path: The file.
        source: How messages name it, for example ``--config build.toml``.

    Raises:
        InputError: The file is missing or cannot be read.
        UsageError: The file is too large or not TOML.
    """
    if is_not_regular_file(path):
        raise InputError(f"{source} is not a regular file")
    try:
        data = read_at_most(path, CONFIG_BYTES)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error}") from error
    if data is None:
        raise UsageError(f"{source} is larger than {CONFIG_BYTES} bytes, which is the limit")
    try:
        return _parsed(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not valid TOML: {printable(str(error))[:300]}") from error


def _parsed(data: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    for number, line in enumerate(data.split(b"\n"), 1):  # parsing takes the square of the parts of a dotted name
        if line.count(b".") > CONFIG_DOTS:
            raise ValueError(f"line {number} has more than {CONFIG_DOTS} dots")
    return tomllib.loads(data.decode("utf-8-sig"))


def unknown_name(key: str, value: Any, names: list[str], advice: str) -> str:
    """Returns the message for a name that is not one of ``names``; ``advice``: what to do if none is similar."""
    kind = "table" if isinstance(value, dict) else "option"
    near = get_close_matches(key.replace("_", "-"), names, 1)
    return f"there is no {kind} '{printable(key[:60])}'; {f'did you mean {near[0]}?' if near else advice}"


def option_value(one: Stated, found: Any, folder: Path, source: str) -> Any:
    """Returns the value of an option as ``make`` accepts it: texts where the option parses them.

    Args:
        one: The option.
        found: The value in the file.
        folder: Where relative paths start.
        source: How messages name the file.

    Raises:
        UsageError: The value has the wrong type, or the option does not accept it.
    """
    value, expected = _typed(one, found)
    if value is None:
        key = one.name.replace("_", "-")
        raise UsageError(f"{source}: '{key}' is {shown_value(found)}; expected {expected}")
    try:
        if isinstance(value, (str, list)):
            one.parse(value)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None
    if one.option.parse is None and bare(one.type) is Path:
        return [folder / item for item in value] if isinstance(value, list) else folder / value
    return value


def _typed(one: Stated, found: Any) -> tuple[Any, str]:
    """Returns the value of an option, or None if it has the wrong type, and the type that is expected."""
    if one.repeated:
        return _list(one, found)
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


def _list(one: Stated, found: Any) -> tuple[list[str] | None, str]:
    """Returns the items of a repeated option as texts, and the type that is expected."""
    items = found if isinstance(found, list) else [found]
    numeric = bare(one.type) in (int, float)
    right = all(_is_text(item) or (numeric and _is_number(item)) for item in items)
    kind = "number" if numeric else "string"
    return list(map(str, items)) if right else None, f"a {kind} or a list of {kind}s"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < _LARGEST)


def _is_tuple(kind: Any) -> bool:
    return any(get_origin(one) is tuple for one in (kind, *get_args(kind)))


def shown_value(value: Any) -> str:
    """Returns a value of the file for a message."""
    kind = next((words for kind, words in _KINDS.items() if isinstance(value, kind)), "a date or a time")
    if kind in (_KINDS[list], _KINDS[dict]) or (type(value) is int and abs(value) >= _LARGEST):
        return kind if type(value) is not int else "a whole number of more than 64 bits"
    return f"{printable(str(value))[:60]!r} ({kind})" if isinstance(value, str) else str(value).lower()
