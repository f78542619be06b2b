"""Reads defaults of options from the TOML file that ``--config`` or ``$MISGNET_CONFIG`` names; no other file is read.

log = "json"                    # for every command that has the option
threads = 4

[watch]                         # for this command only
marker = ".done"
vector = "gpkg"

A value on the command line, or in an environment variable of its own, takes precedence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from misgnet_runtime.bundle.signing.policy import VARIABLE as KEY_VARIABLE
from misgnet_runtime.cli.completion import TYPED
from misgnet_runtime.cli.help import type_name
from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import Option, Stated
from misgnet_runtime.storage.config import option_value, read_toml, shown_value, unknown_name

VARIABLE = "MISGNET_CONFIG"
OPTION = "--config"
# A decision of each call, or no option of a run.
_NEVER = ("allow-older", "config", "help", "install-completion", "show-completion", "version")
_TYPES: Mapping[str, Any] = {
    "bool": bool, "boolean": bool, "int": int, "integer": int, "float": float, "path": Path, "Path": Path, "str": str,
    "text": str,
}  # fmt: skip


@dataclass(frozen=True)
class Defaults:
    """The defaults that a file states."""

    file: Path
    options: Mapping[str, Mapping[str, Any]]  # by command, then by option, as in the file; "": for all commands

    def lines(self) -> Iterator[str]:
        """Yields the file, then the options of each of its tables."""
        yield f"defaults from {self.file}:"
        for command, options in self.options.items():
            values = ", ".join(f"{key} = {_shown(value)}" for key, value in options.items())
            yield f"  {command or 'all commands'}: {values}"


@dataclass
class _Process:
    defaults: Defaults | None = None


_process = _Process()  # of the process, like the log


def defaults_in_force() -> Defaults | None:
    """Returns the defaults that this process read from a file, or None."""
    return _process.defaults


def use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the options in a file the defaults of this call; the callback of ``--config``.

    Raises:
        InputError: The file cannot be read.
        UsageError: It is not valid TOML, or states an unknown option or a wrong value.
    """
    if context.resilient_parsing:  # a shell completes the command line
        return path
    _process.defaults = None
    if path is None or _is_replaced(context):
        return path
    group: Any = context.find_root().command
    source = f"{OPTION if _given(context, 'config') else VARIABLE} {path}"
    found = {key: value for key, value in read_toml(path, source).items() if value != {}}
    reader = _Reader(group, source, path.parent)
    shared, commands = reader.defaults(found)
    if context.command is group:
        context.default_map = {**shared, **commands}
    else:  # after the command
        parent: Any = context.parent
        kept = {name: value for name, value in shared.items() if not _given(parent, name)}
        context.default_map = {**kept, **commands.get(context.info_name or "", {})}
    _process.defaults = Defaults(path, _tables(found))
    return path


def _is_replaced(context: typer.Context) -> bool:
    """Returns whether the file of the variable is replaced by an option after the command."""
    typed = context.meta.get(TYPED, ())
    stated = any(word == OPTION or word.startswith(f"{OPTION}=") for word in typed)
    return stated and not _given(context, "config")


def _given(context: typer.Context, name: str) -> bool:
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _tables(found: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    tables = {key: value for key, value in found.items() if isinstance(value, dict)}
    shared = {key: value for key, value in found.items() if key not in tables}
    return {**({"": shared} if shared else {}), **tables}


class _Reader:
    """Checks the entries of a file, and returns them by the names of parameters."""

    def __init__(self, group: Any, source: str, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._shared = _options(group)
        own = {name: _options(command) for name, command in group.commands.items()}
        self._commands = {name: {**self._shared, **options} for name, options in own.items()}

    def defaults(self, found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Returns the values of the program's own options, and those of each command."""
        shared: dict[str, Any] = {}
        commands: dict[str, dict[str, Any]] = {name: {} for name in self._commands}
        for key, value in found.items():
            if not isinstance(value, dict):
                self._for_all(key, value, shared, commands)
        for table, options in found.items():
            if isinstance(options, dict):
                self._for_one(table, options, commands)
        return shared, commands

    def _for_all(self, key: str, value: Any, shared: dict[str, Any], commands: dict[str, dict[str, Any]]) -> None:
        name = key.replace("_", "-")
        if name in self._shared:
            shared.update(self._value(self._shared[name], name, value))
            return
        owners = [command for command, options in self._commands.items() if name in options]
        if not owners:
            raise self._unknown(key, value, {one for options in self._commands.values() for one in options})
        for command in owners:
            where = f"for {command}; a value for one command only is written below [{command}]"
            commands[command].update(self._value(self._commands[command][name], name, value, where))

    def _for_one(self, table: str, found: Mapping[str, Any], commands: dict[str, dict[str, Any]]) -> None:
        if table not in self._commands:
            raise self._unknown(table, found, set(self._commands))
        for key, value in found.items():
            option = self._commands[table].get(key.replace("_", "-"))
            if option is None:
                raise self._unknown(key, value, set(self._commands[table]), f"[{table}]: ")
            commands[table].update(self._value(option, key.replace("_", "-"), value, f"in [{table}]"))

    def _value(self, option: tuple[Any, Stated], key: str, value: Any, where: str = "") -> dict[str, Any]:
        param, stated = option
        if key == "require-signature" and KEY_VARIABLE in os.environ:  # it takes precedence, and may not be empty
            return {}
        try:
            return {param.name: option_value(stated, value, self._folder, self._source)}
        except UsageError as error:
            raise UsageError(f"{error}{f' ({where})' * bool(where)}") from None

    def _unknown(self, key: str, value: Any, names: set[str], table: str = "") -> UsageError:
        if key.replace("_", "-") in _NEVER:
            return UsageError(f"{self._source}: {table}'{key}' is for the command line only; leave it out")
        text = unknown_name(key, value, sorted(names), f"there are {', '.join(sorted(names))}")
        return UsageError(f"{self._source}: {table}{text}")


def _options(command: Any) -> dict[str, tuple[Any, Stated]]:
    """Returns the options of a command by their names in a file, each with its parameter."""
    known: Mapping[str, Stated] = getattr(command.callback, "stated", {})
    found = {}
    for param in command.params:
        key = max(param.opts, key=len).removeprefix("--")
        if param.param_type_name == "option" and param.nargs == 1 and key not in _NEVER:
            found[key] = param, known.get(param.name) or _stated(param, key)
    return found


def _stated(param: Any, key: str) -> Stated:
    """Returns what :mod:`misgnet_runtime.options` would state of an option that typer alone describes."""
    shown = "bool" if param.is_flag else type_name(param).removeprefix("list[").removesuffix("]")
    kind = _TYPES.get(shown) or Literal[tuple(shown.split("|"))]
    of = tuple[kind, ...] if param.multiple else kind  # type: ignore[valid-type]
    return Stated(name=key, option=Option(help=""), type=of, default=None, path=())


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(value) if isinstance(value, str) else shown_value(value)
