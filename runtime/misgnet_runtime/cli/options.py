"""Builds command signatures from option classes (see :mod:`misgnet_runtime.options`); options of every command."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Optional, get_args

import typer

from misgnet_runtime.bundle.signing.policy import POLICY_VARIABLE, SYSTEM_POLICY, VARIABLE, use_allow_older, use_key
from misgnet_runtime.cli.completion import engine_names
from misgnet_runtime.cli.config import OPTION, use_config
from misgnet_runtime.cli.config import VARIABLE as CONFIG_VARIABLE
from misgnet_runtime.log import LogFormat, use, use_level, use_timestamps
from misgnet_runtime.log import level as current_level
from misgnet_runtime.options import Stated, bare, is_options, make, stated
from misgnet_runtime.storage.lock import use_lock_timeout

_OptionalPath = Optional[Path]  # noqa: UP045 - typer on 3.10

BundlePath = Annotated[Path, typer.Argument(help="Folder of a bundle made by misgnet-export build.")]
Log = Annotated[
    LogFormat,
    typer.Option(help="Log format: text for people, json for one JSON object per line.", callback=use, is_eager=True),
]


def _level_of(level: int) -> Callable[[typer.Context, typer.CallbackParam, bool], None]:
    """Returns the callback of a flag that sets the level of the log; a flag on the command line overrides a file's."""

    def use_flag(context: typer.Context, param: typer.CallbackParam, wanted: bool) -> None:
        source = context.get_parameter_source(param.name or "")
        if wanted and (current_level() == logging.INFO or (source is not None and source.name == "COMMANDLINE")):
            use_level(level)

    return use_flag


Quiet = Annotated[
    bool,
    typer.Option(
        "-q", "--quiet", help="Print only results, warnings and errors.", callback=_level_of(logging.WARNING),
        is_eager=True,
    ),
]  # fmt: skip
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", help="Also print what is done and how long it takes.", callback=_level_of(logging.DEBUG),
        is_eager=True,
    ),
]  # fmt: skip
Timestamps = Annotated[
    bool,
    typer.Option(
        "--timestamps",
        help="Start each line of the text log with the time (UTC), as for a service; JSON always has it.",
        callback=use_timestamps, is_eager=True,
    ),
]  # fmt: skip
Config = Annotated[
    _OptionalPath,
    typer.Option(
        OPTION,
        help="TOML file of defaults for any of these options, under their names without dashes in front; options of "
        "one command may be in a table of its name. Paths in it start from its folder (default: none).",
        metavar="FILE", envvar=CONFIG_VARIABLE, callback=use_config, is_eager=True,
    ),
]  # fmt: skip
RequireSignature = Annotated[
    _OptionalPath,
    typer.Option(
        "--require-signature",
        help="PEM file of public keys or certificates. A bundle must be signed by one of them, or no part of it "
        f"is read (default: ${VARIABLE}). The policy files {SYSTEM_POLICY} and ${POLICY_VARIABLE} also apply.",
        metavar="KEY", callback=use_key, is_eager=True,
    ),
]  # fmt: skip
AllowOlder = Annotated[
    bool,
    typer.Option(
        "--allow-older",
        help="Accept a signed bundle that has expired or is older than the newest one accepted here, if every policy "
        "file permits it.",
        callback=use_allow_older, is_eager=True,
    ),
]  # fmt: skip
LockTimeout = Annotated[
    float,
    typer.Option(
        "--lock-timeout",
        help="Seconds to wait for a lock held by another process before giving up with exit code 4.",
        metavar="SECONDS", callback=use_lock_timeout, is_eager=True,
    ),
]  # fmt: skip


def print_version(context: typer.Context, wanted: bool) -> None:
    """Prints the program's name, the versions of the package, of Python and of the engines, and ends the command."""
    if wanted and not context.resilient_parsing:  # a shell completes the rest of the line
        typer.echo(f"{context.find_root().command.name} {_versions()}")
        raise typer.Exit


def _versions() -> str:
    """Returns versions as the installed distributions state them, without importing an engine's library."""
    import platform

    from misgnet_runtime import __version__
    from misgnet_runtime.engines import LIBRARIES
    from misgnet_runtime.machine import installed_versions

    found = installed_versions(name for names in LIBRARIES.values() for name in names)
    engines = ", ".join(f"{name} {version}" for name, version in found.items()) or "none found"
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return f"{__version__} ({system}; engines: {engines})"


Version = Annotated[
    bool,
    typer.Option(
        "--version", help="Print the versions of this program, of Python and of the engines found, and exit.",
        callback=print_version, is_eager=True,
    ),
]  # fmt: skip


class Given(dict[str, Any]):
    """The options of a class that were given on the command line, by name, for commands that complete them."""


def none_required(context: typer.Context, value: Any) -> Any:
    """Lets the command be called without its required options: the callback of an eager option of the command.

    The command takes :class:`Given` options and reports missing ones itself.
    """
    context.default_map = {param.name: "" for param in context.command.params if param.required}
    return value


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Expands each parameter whose type is an option class into that class's options, so that typer sees them.

        @app.command()
        @takes_options
        def predict(bundle: BundlePath, *, output: Output, options: SceneOptions) -> None: ...

    The command is called with an object of that class, made from the options given. A parameter of the type
    ``Annotated[Given, SceneOptions]`` gets only what was given on the command line.
    """
    # Not get_type_hints: Python 3.10 wraps the annotation of a default of None, and typer misses the option's name.
    hints = {name: one.annotation for name, one in signature(command, eval_str=True).parameters.items()}
    classes = {name: kind for name, kind in hints.items() if is_options(kind)}
    partial = {name: get_args(kind)[1] for name, kind in hints.items() if get_args(kind)[:1] == (Given,)}

    def run(**given: Any) -> None:
        for name, kind in (classes | partial).items():
            found = {option: given.pop(option) for option in stated(kind)}
            found = {option: value for option, value in found.items() if value is not None}
            given[name] = make(kind, found) if name in classes else Given(found)
        command(**given)

    parameters = list(_parameters(command, hints, classes, partial))
    parameters.sort(key=lambda one: one.kind)  # positional ones first
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    all_options = [stated(kind) for kind in (classes | partial).values()]
    run.stated = {name: one for options in all_options for name, one in options.items()}  # type: ignore[attr-defined]
    return run


def _parameters(
    command: Callable[..., None], hints: dict[str, Any], classes: dict[str, type], partial: dict[str, type]
) -> Iterator[Parameter]:
    for name, own in signature(command).parameters.items():
        if name in classes:
            yield from (_parameter(one) for one in stated(classes[name]).values())
        elif name in partial:
            yield from (_parameter(one, callback=_if_given) for one in stated(partial[name]).values())
        else:
            yield own.replace(annotation=hints[name])


def _if_given(context: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """Returns None for a value that is not on the command line, but the option's default."""
    source = context.get_parameter_source(param.name or "")
    return value if source is not None and not source.name.startswith("DEFAULT") else None


def _parameter(one: Stated, **more: Any) -> Parameter:
    about, repeated = one.option, one.repeated
    item = str if about.parse else bare(one.type)
    kind: Any = list[item] if repeated else item  # type: ignore[valid-type]
    default, show = one.default, about.show_default
    if one.inverted:
        default = False
    elif default is not MISSING and (repeated or about.parse):  # shown as text; ``make`` supplies the value
        default, show = None, _text(default) if show is None else show
    more |= {
        "help": about.help, "metavar": about.metavar, "rich_help_panel": about.panel, "envvar": about.envvar,
        "show_default": True if show is None else show or False,
        "autocompletion": engine_names if one.name == "engine" else None,
    }  # fmt: skip
    names = [about.short, one.flag] if about.short else [one.flag]
    info = typer.Argument(**more) if about.positional else typer.Option(*names, **more)
    return Parameter(
        one.name,
        Parameter.POSITIONAL_OR_KEYWORD if about.positional else Parameter.KEYWORD_ONLY,
        default=Parameter.empty if default is MISSING else default,
        annotation=Annotated[Optional[kind] if default is None else kind, info],  # noqa: UP045
    )


def _text(default: Any) -> str:
    if default is None:
        return ""
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
