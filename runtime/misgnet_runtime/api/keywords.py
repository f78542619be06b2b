"""Makes the options of a scene from keyword arguments: the options that commands and tables state, as Python values."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.options import Stated, bare, make, stated

_OF_THE_SESSION = ("engine", "streams", "threads", "no_tuned")  # fixed when the bundle was opened


def options_of(given: Mapping[str, Any]) -> SceneOptions:
    """Returns a scene's options from keyword arguments; None: as if not given.

    Raises:
        UsageError: A name is unknown or belongs to :func:`open_bundle`, or a value has another type.
    """
    known = stated(SceneOptions)
    for name in given:
        if name in _OF_THE_SESSION:
            raise UsageError(f"'{name}' belongs to the engine, which is already open; pass it to open_bundle")
        if name not in known:
            raise UsageError(
                f"there is no option '{name}'; there are {', '.join(sorted(known.keys() - set(_OF_THE_SESSION)))}"
            )
    return make(
        SceneOptions, {name: _converted(known[name], value) for name, value in given.items() if value is not None}
    )


def _converted(option: Stated, value: Any) -> Any:
    """Returns a value as the options hold it; text is parsed later, as on the command line."""
    kind = bare(option.type)
    convert = _CONVERTERS.get(kind, _no_text)
    try:
        if isinstance(value, str):
            return value
        if any(get_origin(one) is tuple for one in (option.type, *get_args(option.type))):
            items: list[Any] = [value] if isinstance(value, (int, float)) else list(value)
            if items and all(isinstance(item, str) for item in items):
                return ",".join(items)  # parsed as the same text on the command line
            return tuple(map(convert, items))
        return convert(value)
    except (TypeError, ValueError):
        raise UsageError(f"{option.flag} is {value!r}; expected {_EXPECTED.get(kind, 'a text')}") from None


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _path(value: Any) -> Path:
    return Path(os.fspath(value))


def _no_text(value: Any) -> Any:
    raise TypeError(value)


_CONVERTERS: Mapping[Any, Callable[[Any], Any]] = {bool: _flag, int: operator.index, float: float, Path: _path}
_EXPECTED = {bool: "True or False", int: "a whole number", float: "a number, or one per band", Path: "a path"}
