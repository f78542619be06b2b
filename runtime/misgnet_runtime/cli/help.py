"""Lays out help pages as plain text that fits the terminal, and names the values of options.

Pages have no frames and cut no words: at 60 columns a text stands below its option, on wider terminals beside it.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import typer

MOST_COLUMNS = 100  # longer lines are hard to read
_LABELS = 28  # columns of options and their values, if texts stand beside them
_BESIDE = 74  # columns from which texts stand beside them
_SHORT = 30  # characters of a default that stays on one line
_JOINED = "\xa0"  # a space at which no line ends
_NOTE = re.compile(r"(?<=  )\[[^\]]*\]$")
_TYPES = MappingProxyType({
    "int": "N", "integer": "N", "float": "NUMBER", "str": "TEXT", "text": "TEXT", "path": "FILE", "Path": "FILE",
})  # fmt: skip
# Words for the values of options, where the type alone says too little.
_NAMES = MappingProxyType({
    "batch": "TILES", "cache_gib": "GIB", "calib_tiles": "TILES", "control_minutes": "MINUTES", "crop": "PIXELS",
    "device": "DEVICE", "engine": "ENGINE", "epochs": "EPOCHS", "evaluation": "FOLDER", "expires": "DATE",
    "keep_float32": "NAME", "licence": "NAME", "marker": "SUFFIX", "max_batch": "TILES", "max_f1_drop": "POINTS",
    "max_seconds": "SECONDS", "min_area": "AREA", "min_f1_ratio": "RATIO", "minutes": "MINUTES", "multiple": "PIXELS",
    "observer": "NAME", "output": "FOLDER", "overlap": "PIXELS", "poll": "SECONDS",
    "product": "NAME", "qat": "BUNDLE", "qat_graph": "NAME", "queue_delay": "MICROSECONDS", "ray": "ADDRESS",
    "resolution": "METRES", "save_minutes": "MINUTES", "seconds": "SECONDS", "settle": "SECONDS", "shard": "I/N",
    "simplify": "PIXELS", "size": "PIXELS", "state_key": "KEY", "steps": "STEPS", "target": "TARGET", "tile": "PIXELS",
    "warm_up": "SECONDS", "warmup_epochs": "EPOCHS",
})  # fmt: skip


def name_values(params: list[Any]) -> None:
    """Gives each parameter of a command the word for its value: ``BUNDLE``, ``PIXELS``, ``text|json``."""
    for param in params:
        if param.metavar is None and not getattr(param, "is_flag", False):
            param.metavar = _word(param)


def _word(param: Any) -> str:
    types = type_name(param).removeprefix("list[").removesuffix("]").split(",")
    if not all(one in _TYPES for one in types):  # choices
        return types[0]
    if param.param_type_name == "argument":
        return str(param.name).upper()
    return _NAMES.get(param.name) or " ".join(_TYPES[one] for one in types)


def type_name(param: Any) -> str:
    """Returns what typer calls the type of a value: newer versions have no types of click."""
    if hasattr(param, "display_type"):
        return str(param.display_type(typer.Context(typer.core.TyperCommand("x")))).strip("<>")
    return "|".join(map(str, getattr(param.type, "choices", ()))) or str(param.type.name).strip("<>").replace(" ", ",")


def usage_pieces(command: Any) -> list[str]:
    """Returns what a call consists of: arguments, then required options: ``BUNDLE BEFORE AFTER -o FILE [OPTIONS]``."""
    arguments = [argument_usage(param) for param in command.params if param.param_type_name == "argument"]
    required = [option_usage(param) for param in command.params if _is_option(param) and param.required]
    return [*arguments, *required, "[OPTIONS]"]


def argument_usage(param: Any) -> str:
    """Returns ``BEFORE``, ``[AFTER]`` or ``DATES...``."""
    name = param.metavar.strip("[]") + ("..." if param.nargs != 1 else "")
    return name if param.required else f"[{name}]"


def option_usage(param: Any) -> str:
    """Returns the shortest name of an option with the word for its value: ``-o FILE``."""
    flag = min(param.opts, key=len)
    return flag if param.is_flag else f"{flag} {param.metavar}"


def page(command: Any, context: Any, width: int) -> str:
    """Returns the help page of a command, or of a program with its commands, for lines of ``width`` columns."""
    pieces = [piece.replace(" ", _JOINED) for piece in command.collect_usage_pieces(context)]
    usage = f"Usage: {context.command_path} {' '.join(pieces)}"
    blocks = [_filled(usage, width, hanging=7)]
    blocks += [_filled(" ".join(text.split()), width) for text in (command.help or "").split("\n\n")]
    for title, rows in _sections(command, context).items():
        blocks.append("\n".join([_bold(_filled(f"{title}:", width)), *_table(rows, width)]))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _sections(command: Any, context: Any) -> Mapping[str, list[tuple[str, str]]]:
    """Returns the rows of each section: arguments, options by panel, commands."""
    found: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is not None:
            title = getattr(param, "rich_help_panel", None) or ("Options" if _is_option(param) else "Arguments")
            text = record[1].replace("\\[", "[")  # older versions of typer escape it for Rich
            found.setdefault(title, []).append((_label(param), _NOTE.sub(_note, text)))
    commands = getattr(command, "commands", {})
    found["Commands"] = [(name, (one.help or "").split("\n\n")[0]) for name, one in commands.items()]
    return {title: rows for title, rows in found.items() if rows}


def _note(found: re.Match[str]) -> str:
    """Returns what typer adds to a text, such as "[default: 3]", on one line if it is short, without parentheses."""
    text = re.sub(r"default: \((.*)\)", r"default: \1", found[0])
    return text.replace(" ", _JOINED) if len(text) <= _SHORT else text


def _is_option(param: Any) -> bool:
    return bool(param.param_type_name == "option")


def _label(param: Any) -> str:
    if not _is_option(param):
        return argument_usage(param)
    flags = ", ".join(sorted([*param.opts, *param.secondary_opts], key=len))
    return flags if param.is_flag else f"{flags} {param.metavar}"


def _table(rows: list[tuple[str, str]], width: int) -> Iterator[str]:
    beside = min(max(len(label) for label, _ in rows), _LABELS) + 4 if width >= _BESIDE else 8
    for label, text in rows:
        lines = _filled(text, max(width - beside, 20)).splitlines()
        first = f"  {_bold(label)}"
        if lines and len(label) + 4 <= beside:
            yield first + " " * (beside - len(label) - 2) + lines.pop(0)
        else:
            yield first
        yield from (" " * beside + line for line in lines)


def _filled(text: str, width: int, hanging: int = 0) -> str:
    lines = textwrap.wrap(
        text, width, subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines).replace(_JOINED, " ")


def _bold(text: str) -> str:
    """Returns ``text`` in bold; typer removes that again where the output is not a terminal."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    return text if plain else typer.style(text, bold=True)
