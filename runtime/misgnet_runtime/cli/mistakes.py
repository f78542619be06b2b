"""Explains invalid calls in one line: what was asked, what was found, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer

from misgnet_runtime.cli.help import argument_usage, option_usage, type_name
from misgnet_runtime.errors import UsageError
from misgnet_runtime.storage.files import is_file, is_folder

# click's UsageError; newer versions of typer vendor click under another name.
WRONG_CALL: Any = typer.BadParameter.__bases__[0]
# The commands of all programs, for those who ask the wrong one; the runtime cannot import the others.
PROGRAMS = MappingProxyType({
    "misgnet-run": (
        "predict", "info", "verify", "batch", "bench", "encode", "series", "tune", "watch", "compile",
    ),
    "misgnet-export": ("build", "parity", "inspect", "triton", "publish", "wheelhouse", "sign"),
    "misgnet": ("prepare", "train", "evaluate", "predict", "synthesize"),
})  # fmt: skip
_EXPECTED = MappingProxyType({
    "int": "a whole number", "integer": "a whole number", "float": "a number",
})  # fmt: skip
_FILES = ("FILE", "SCENES", "RASTER", "REFERENCE", "DATES")  # words for values that are files
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".xz", ".zst", ".7z")
_NETWORKS = (".pth", ".pt", ".ckpt", ".safetensors", ".onnx", ".pt2")
_ALIKE = 0.7  # from which similarity on a name is suggested


def explain(error: Any, context: Any, arguments: Sequence[str]) -> str:
    """Returns the message for an invalid call.

    Args:
        error: The usage error of typer.
        context: The context of the command that raised it.
        arguments: The arguments of that command, as typed.
    """
    kind = type(error).__name__
    if kind == "NoSuchOption":
        return _unknown_option(error.option_name, context)
    if kind == "MissingParameter":
        return _missing(context, arguments)
    if kind == "BadParameter" and error.param is not None:
        return _invalid_value(error, context, arguments)
    text = " ".join(error.format_message().split())
    if text.startswith("Got unexpected extra argument"):
        return f"{_extra(context, arguments)}; {_usage(context)}"
    return text if "; " in text else f"{text.rstrip('.')}; see `{context.command_path} --help`"


def check_paths(context: Any) -> None:
    """Raises UsageError if arguments of a valid call are swapped, or a path is a folder instead of a file."""
    paths = [(param, value) for param in context.command.params for value in _paths(context.params.get(param.name))]
    bundle = next(iter(_paths(context.params.get("bundle"))), None)  # older versions of Typer have text here
    for param, path in paths:
        if bundle is not None and param.name != "bundle" and _is_bundle(path) and not _is_bundle(bundle):
            what = f"BUNDLE is {bundle}, and {_name(param)} is {path}, which is a bundle"
            raise UsageError(f"{what}; {_usage(context)}")
    for param, path in paths:
        if param.metavar in _FILES and not _may_be_folder(context, param) and is_folder(path):
            raise UsageError(f"{_name(param)} is {path}, which is a folder; name a file{_such_as(param, path)}")
        if param.metavar == "BUNDLE" and is_file(path):
            what = f"{_name(param)} is {path}, which is {_kind(path)}"
            raise UsageError(f"{what}; {_usage(context)}")
        if param.metavar == "FOLDER" and is_file(path):
            raise UsageError(f"{_name(param)} is {path}, which is a file; name a folder")


def _paths(values: Any) -> list[Path]:
    some = values if isinstance(values, (list, tuple)) else [values]
    return [Path(one) for one in some if isinstance(one, (str, Path)) and "\0" not in str(one)]


def _may_be_folder(context: Any, param: Any) -> bool:
    """Returns whether the command takes folders instead of files: ``predict`` does, if a date is one."""
    return param.name == "output" and any(map(is_folder, _paths(context.params.get("before"))))


def _kind(path: Path) -> str:
    """Returns what a file is that was given instead of a bundle, and what to do with it."""
    from misgnet_runtime.bundle.fields import MANIFEST

    suffix = path.suffix.lower()
    if path.name == MANIFEST:
        return f"in a bundle; give its folder {path.parent}"
    if suffix in _ARCHIVES:
        return "a file; a bundle is a folder: unpack the archive first"
    if suffix in _NETWORKS:
        return f"a network; make a bundle of it with `misgnet-export build {shlex.quote(str(path))} ...`"
    return "a file; a bundle is a folder"


def _such_as(param: Any, path: Path) -> str:
    return f" in it, such as {_name(param)} {path / 'change.tif'}" if param.name == "output" else ""


def _name(param: Any) -> str:
    return argument_usage(param) if param.param_type_name == "argument" else min(param.opts, key=len)


def _is_bundle(path: Path) -> bool:
    from misgnet_runtime.bundle.fields import MANIFEST

    return is_file(path / MANIFEST)


def unknown_command(context: Any, name: str) -> str:
    """Returns the message for a command that a program does not have."""
    commands = list(context.command.commands)
    if near := get_close_matches(name, commands, 1, _ALIKE):
        return f"there is no command '{name}'; did you mean {near[0]}?"
    if programs := [program for program, others in PROGRAMS.items() if name in others]:
        return f"there is no command '{name}' here; use `{programs[0]} {name}`"
    if is_file(Path(name)) or is_folder(Path(name)):
        return f"'{name}' is a path; a command comes first: {context.info_name} COMMAND {name}"
    return f"there is no command '{name}'; commands are {', '.join(commands)}"


def _unknown_option(name: str, context: Any) -> str:
    group = context.find_root().command
    if owners := list(_owners(name, group)):
        if context.command is group:
            return f"{name} is an option of {_listed(owners)}; write it after the command"
        return f"{name} is an option of {_listed(owners)}, not of {context.info_name}; leave it out"
    near = get_close_matches(name, _flags(context.command), 1, _ALIKE)
    advice = f"did you mean {near[0]}?" if near else f"see `{context.command_path} --help`"
    return f"there is no option {name}; {advice}"


def _flags(command: Any) -> list[str]:
    return [flag for param in command.params if param.param_type_name == "option" for flag in param.opts]


def _owners(name: str, group: Any) -> Iterator[str]:
    return (key for key, command in group.commands.items() if name in _flags(command))


def _listed(names: list[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _missing(context: Any, arguments: Sequence[str]) -> str:
    """Returns the message that names all missing arguments and options at once."""
    given, extra = _parsed(context, arguments)
    lacking = [
        param for param in context.command.params
        if param.required and param.value_is_missing(param.consume_value(context, given)[0])
    ]  # fmt: skip
    names = [argument_usage(param) if param.param_type_name == "argument" else option_usage(param) for param in lacking]
    text = f"missing: {', '.join(names)}; {_usage(context)}"
    if len(lacking) == 1 and lacking[0].name == "output" and len(extra) == 1:
        return f"'{extra[0]}' is one argument too many, and {names[0]} is missing; write -o {extra[0]}"
    return text


def _invalid_value(error: Any, context: Any, arguments: Sequence[str]) -> str:
    """Returns the message for a value of the wrong type."""
    param = error.param
    name = param.name.upper() if param.param_type_name == "argument" else max(param.opts, key=len)
    values = _parsed(context, arguments)[0].get(param.name)
    value = values[-1] if isinstance(values, list) and values else values
    kind = type_name(param).removeprefix("list[").removesuffix("]")
    expected = _EXPECTED.get(kind) or (f"{_listed(kind.split('|'), 'or')}" if "|" in kind else "")
    if not isinstance(value, str) or not expected:
        return f"{name}: {' '.join(str(error.message).split())}; see `{context.command_path} --help`"
    return f"{name} is '{value}'; expected {expected}"


def _extra(context: Any, arguments: Sequence[str]) -> str:
    _, extra = _parsed(context, arguments)
    shown = ", ".join(f"'{one}'" for one in extra)
    return f"{shown} {'is one argument' if len(extra) == 1 else f'are {len(extra)} arguments'} too many"


def _parsed(context: Any, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the values of a call by parameter, as texts, and the arguments that are left over."""
    parser = context.command.make_parser(context)
    with suppress(WRONG_CALL):
        given, extra, _ = parser.parse_args(list(arguments))
        return given, extra
    return {}, []


def _usage(context: Any) -> str:
    return f"usage: {context.command_path} {' '.join(context.command.collect_usage_pieces(context))}"
