"""Generates the reference of a command line program in Markdown, from its typer app."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import typer

from misgnet_runtime.cli.help import argument_usage, usage_pieces

PROGRAMS = {
    "misgnet-run": "misgnet_runtime.cli.main",
    "misgnet-export": "misgnet_export.cli.main",
    "misgnet": "misgnet.cli",
}
OPTION = re.compile(r"(?<![\w`\[-])(--[a-z][\w-]*|-[a-z])(?![\w`-])")  # in prose, outside backquotes
STATED = re.compile(r"\s*\(default: ([^()]*)\)")  # in a help text
SHARED_NOTE = (
    "They are accepted before or after the command, except those of shell completion, which stand alone. `-h` or "
    "`--help` shows the options of each command."
)
SHARED_PANEL = "Every command"  # options of the program, which each command takes too


def program_reference(name: str) -> str:
    """Returns the page's body: the program, the options that all its commands take, then each command."""
    group = load(name)
    commands = {key: group.commands[key] for key in sorted(group.commands)}
    parts = [prose(group.help), "", "| command | description |", "|---|---|"]
    parts += [f"| [`{key}`](#{anchor(name, key)}) | {summary(command)} |" for key, command in commands.items()]
    shared = [param for param in group.params if param.name != "help"]
    parts += ["", "## Options of every command", "", SHARED_NOTE, ""]
    parts += table(shared)
    for key, command in commands.items():
        parts += command_reference(name, key, command)
    return "\n".join(parts) + "\n"


def load(name: str) -> Any:
    """Returns the click group of a program."""
    return typer.main.get_command(import_module(PROGRAMS[name]).app)


def command_reference(program: str, name: str, command: Any) -> Iterator[str]:
    """Yields a command's lines: its usage, its description, and a table for each panel of its help."""
    own = [param for param in command.params if param.rich_help_panel != SHARED_PANEL and not param.hidden]
    arguments = [param for param in own if param.param_type_name == "argument"]
    yield from ("", f"## {program} {name} {{#{anchor(program, name)}}}", "", "```sh")
    yield " ".join([program, name, *usage_pieces(command)])
    yield from ("```", "", prose(command.help), "")
    yield from table(arguments)
    panels: dict[str, list[Any]] = {}
    for param in own:
        if param not in arguments:
            panels.setdefault(param.rich_help_panel or "Options", []).append(param)
    for panel, params in panels.items():
        yield from ("", f"**{panel}**", "")
        yield from table(params)


def table(params: list[Any]) -> Iterator[str]:
    """Yields a table: option and value, what it does, default."""
    if not params:
        return
    head = "argument" if params[0].param_type_name == "argument" else "option"
    yield from ('<div class="options" markdown>', "", f"| {head} | description | default |", "|---|---|---|")
    for param in params:
        yield f"| {names(param)} | {cell(description(param))} | {cell(default(param))} |"
    yield from ("", "</div>")


def names(param: Any) -> str:
    """Returns an option's flags and the placeholder of its value; an argument's name."""
    if param.param_type_name == "argument":
        return code(argument_usage(param))
    flags = [*param.opts, *param.secondary_opts]
    shown = ", ".join(code(flag) for flag in sorted(flags, key=len))
    return shown if param.is_flag else f"{shown} {code(param.metavar)}"


def default(param: Any) -> str:
    """Returns the default's text as ``--help`` shows it, or "required"."""
    if param.required:
        return "*required*"
    if isinstance(param.show_default, str):
        return prose(param.show_default) if " " in param.show_default else code(param.show_default)
    if getattr(param, "is_flag", False):
        return "on" if param.default else "off"
    if not param.show_default or param.default is None or param.default in ((), [], ""):
        return stated_default(param.help or "")
    return code(str(getattr(param.default, "value", param.default)))


def description(param: Any) -> str:
    """Returns the help text without the default, which has its own column."""
    text = prose(STATED.sub("", param.help or "", count=1))
    repeated = getattr(param, "multiple", False) and "repeat" not in text
    return f"{text} May be repeated." if repeated else text


def stated_default(text: str) -> str:
    """Returns the default that the help text itself states as "(default: ...)"."""
    found = STATED.search(text)
    return "none" if found is None else prose(found[1])


def summary(command: Any) -> str:
    """Returns the first paragraph of a command's description, as one table cell."""
    return cell(prose((command.help or "").strip().split("\n\n")[0]))


def prose(text: str | None) -> str:
    """Returns a help text as Markdown: options are code, and characters with a meaning in Markdown are escaped."""
    shown = html.escape(re.sub(r"(?<!\n)\n(?!\n)", " ", (text or "").strip()), quote=False)
    pieces = re.split(r"(`[^`]*`)", shown)
    return "".join(piece if piece[:1] == "`" else _plain(piece) for piece in pieces)


def _plain(text: str) -> str:
    escaped = re.sub(r"([*\[\]]|(?<=\s)_)", r"\\\1", text)
    return OPTION.sub(r"`\1`", escaped)


def cell(text: str) -> str:
    """Returns ``text`` on one line, with its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Returns ``text`` as code in a table cell."""
    return f"`{text}`" if "|" not in text else f"<code>{text.replace('|', '&#124;')}</code>"


def anchor(program: str, command: str) -> str:
    """Returns the heading's identifier, which other pages link to."""
    return f"{program}-{command}"
