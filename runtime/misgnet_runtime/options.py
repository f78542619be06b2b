"""Declares options as dataclass fields that carry their help text, parser, limits and effect on the output.

The signatures of commands (:mod:`misgnet_runtime.cli.options`), the columns of a table of scenes and the settings that
a resumed run is compared with are generated from these fields. A new option is one new field:

    @dataclass(frozen=True, kw_only=True)
    class Request:
        calib: Path = option(help="Folder whose tiles calibrate INT8.")  # no default: required
        tile: int = option(256, help="Tile size in pixels.", minimum=32)
        gate: Literal["point", "upper"] = option("point", help="What must stay within the limit.")
        tuned: bool = option(True, help="Ignore saved settings.")  # a flag that is on by default: --no-tuned
        engines: tuple[str, ...] = option((), name="engine", help="An engine; may be repeated.")
        scale: tuple[float, ...] | None = option(None, help="One number or three.", parse=numbers(1, 3, like="0.1"))
        execution: ExecutionOptions = group(ExecutionOptions)  # all options of another class

:func:`make` builds such an object from values by option name, :func:`check` checks it against the limits of its fields,
and :func:`settings` returns the values that the output depends on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from misgnet_runtime.errors import UsageError
from misgnet_runtime.parsers import parser_of

T = TypeVar("T")
_KEY = "misgnet.option"


@dataclass(frozen=True, kw_only=True)
class Option:
    """Describes an option, in addition to the type and default of its field."""

    help: str
    name: str | None = None  # on the command line, without leading dashes; default: the field's name
    short: str | None = None  # "-o"
    panel: str | None = None  # heading on the help page
    metavar: str | None = None
    show_default: str | None = None  # text shown instead of the default value
    envvar: str | None = None
    positional: bool = False  # an argument of the command, not an option
    repeated: bool = False  # a tuple whose items are parsed one by one; always so for tuple[X, ...] if parse is None
    parse: Callable[[str], Any] | None = None  # text to value; raises ValueError("expected ..."). Default: by the type
    minimum: float | None = None
    maximum: float | None = None
    suffixes: tuple[str, ...] = ()  # accepted suffixes of a file name
    changes_output: bool = False  # whether a run with another value cannot resume this one
    omit_default: bool = False  # whether records leave out the default: those of older versions lack the option
    recorded_as: str | None = None  # the setting that records the resolved value instead of this option


@dataclass(frozen=True, kw_only=True)
class Group:
    """Describes a field that holds another class of options, which become options of the outer class.

    An option of the outer class replaces an option of the same name in the group.
    """

    of: type
    prefix: str = ""  # added to the names of the options: "before_"
    panel: str | None = None  # heading on the help page, instead of the options' own
    without: tuple[str, ...] = ()  # fields that are not offered as options
    fixed: Mapping[str, Any] = field(default_factory=dict)  # values of fields in ``without`` that differ from defaults
    help: Mapping[str, str] | str = field(default_factory=dict)  # by name, or for all; "{flag}": without the prefix
    as_text: bool = False  # the field holds {name: text} of the group, like the cells of a table


@dataclass(frozen=True, kw_only=True)
class Stated:
    """An option, under the name that commands, tables and journals use."""

    name: str  # "before_scale", "no_tuned"
    option: Option
    type: Any  # of the field
    default: Any  # MISSING: required
    path: tuple[str, ...]  # field names from the outer options object to the value

    @property
    def flag(self) -> str:
        """Returns the name on the command line: ``--before-scale``."""
        return flag(self.name)

    @property
    def usage(self) -> str:
        """Returns how the option is given: ``--calib FOLDER``, ``-o FOLDER``, ``SOURCE``."""
        if self.option.positional:
            return self.name.upper()
        return f"{self.option.short or self.flag} {self.option.metavar or 'VALUE'}"

    @property
    def inverted(self) -> bool:
        """Returns whether the flag switches off something that is on by default."""
        return self.default is True

    @property
    def repeated(self) -> bool:
        """Returns whether the option may be repeated, each time adding one item to a tuple."""
        if self.option.parse:
            return self.option.repeated
        return get_origin(self.type) is tuple and get_args(self.type)[-1] is Ellipsis

    def value_in(self, options: Any) -> Any:
        """Returns the value of this option in ``options``."""
        for name in self.path:
            if isinstance(options, Mapping):
                return options.get(self.name)
            options = getattr(options, name)
        return options

    def parse(self, given: Any) -> Any:
        """Parses a text or a list of texts; a value that is not text is returned unchanged.

        Raises:
            UsageError: The text is not a valid value of this option.
        """
        parse = self.option.parse or parser_of(bare(self.type))
        given = [given] if self.repeated and isinstance(given, str) else given
        try:
            if isinstance(given, (list, tuple)):
                return tuple(parse(one) if isinstance(one, str) else one for one in given)
            found = parse(given) if isinstance(given, str) else given
        except ValueError as error:
            raise UsageError(f"{self.flag} is '{given}'; {error}") from None
        return not found if self.inverted else found

    def check(self, value: Any) -> None:
        """Raises UsageError for a number outside the limits, or a file name without an accepted suffix."""
        least, most, suffixes = self.option.minimum, self.option.maximum, self.option.suffixes
        if value is None or isinstance(value, str):  # a cell's text is checked when it is parsed
            return
        if not ((least is None or value >= least) and (most is None or value <= most)):  # NaN is outside any limit
            limits = f"{least:g} or more" if most is None else f"{most:,} or less" if least is None else ""
            raise UsageError(f"{self.flag} is {value}; expected {limits or f'{least:g} to {most:,}'}")
        if suffixes and isinstance(value, Path) and value.suffix.lower() not in suffixes:
            raise UsageError(f"{self.flag} is {value.name}; choose a name that ends in {' or '.join(suffixes)}")


def option(default: Any = MISSING, *, help: str, **more: Any) -> Any:
    """Declares a field as an option; it is required if it has no default.

    Args:
        default: The default value.
        help: The text on the help page.
        more: Other attributes of :class:`Option`.
    """
    return field(default=default, metadata={_KEY: Option(help=help, **more)})


def group(of: type, **more: Any) -> Any:
    """Declares a field that holds options of the class ``of``; ``more``: other attributes of :class:`Group`."""
    found = Group(of=of, **more)
    return field(default_factory=dict if found.as_text else lambda: of(**found.fixed), metadata={_KEY: found})


def is_options(found: object) -> bool:
    """Returns whether ``found`` is a class that declares options."""
    return isinstance(found, type) and is_dataclass(found) and any(_KEY in one.metadata for one in fields(found))


def stated(of: type) -> Mapping[str, Stated]:
    """Returns all options of a class by name, in the order of its fields."""
    return _stated(of)


@cache
def _stated(of: Any) -> Mapping[str, Stated]:
    found: dict[str, Stated] = {}
    hints = get_type_hints(of)
    for one in fields(of):
        about = one.metadata.get(_KEY)
        if isinstance(about, Option):
            name = f"{'no_' if one.default is True else ''}{(about.name or one.name).replace('-', '_')}"
            found[name] = Stated(name=name, option=about, type=hints[one.name], default=one.default, path=(one.name,))
        elif isinstance(about, Group):
            for inner in _of_group(about, one.name):
                found.setdefault(inner.name, inner)
    return found


def _of_group(group: Group, field_name: str) -> Iterator[Stated]:
    for name, inner in stated(group.of).items():
        if inner.path[0] in group.without:
            continue
        text = group.help if isinstance(group.help, str) else group.help.get(name, inner.option.help)
        about = replace(inner.option, help=text.replace("{flag}", flag(name)), panel=group.panel or inner.option.panel)
        if group.as_text:
            about = replace(about, minimum=None, suffixes=())  # checked later, when the texts are parsed
        yield replace(inner, name=group.prefix + name, option=about, path=(field_name, *inner.path))


def make(of: type[T], given: Mapping[str, Any]) -> T:
    """Builds options of the class ``of``; options that are not given keep their defaults.

    Args:
        of: The class of options.
        given: Values, or their texts, by option name.

    Raises:
        UsageError: A name is not an option of ``of``, a text is not a valid value, or a required option is missing.
    """
    known = stated(of)
    if unknown := given.keys() - known.keys():
        raise UsageError(f"there is no option {', '.join(map(flag, sorted(unknown)))}")
    if lacking := missing(of, given):
        raise UsageError(f"missing: {', '.join(one.usage for one in lacking)}")
    return _make(of, {known[name].path: (known[name], value) for name, value in given.items()})


def missing(of: type, given: Container[str]) -> list[Stated]:
    """Returns the required options of the class ``of`` whose names are not in ``given``."""
    return [one for one in stated(of).values() if one.default is MISSING and one.name not in given]


_Given = Mapping[tuple[str, ...], tuple[Stated, Any]]


def _make(of: type[T], given: _Given, fixed: Mapping[str, Any] | None = None) -> T:
    """Builds options of the class ``of``; ``given`` is keyed by the options' paths in ``of``."""
    arguments = dict(fixed or {})
    for one in fields(of):  # type: ignore[arg-type]
        about = one.metadata.get(_KEY)
        if isinstance(about, Group):
            inner = {path[1:]: value for path, value in given.items() if path[0] == one.name}
            arguments[one.name] = _texts(inner) if about.as_text else _make(about.of, inner, about.fixed)
        elif (one.name,) in given:
            option, value = given[(one.name,)]
            arguments[one.name] = option.parse(value)
    return of(**arguments)


def _texts(given: _Given) -> dict[str, str]:
    """Returns values as the texts of table cells; options that are not set are left out."""
    values = {option.name: value for option, value in given.values() if value is not None and value is not False}
    return {name: "yes" if value is True else str(value) for name, value in values.items()}


def check(options: Any) -> None:
    """Raises UsageError for a value outside the limits of its field."""
    for one in stated(type(options)).values():
        one.check(one.value_in(options))


def settings(options: Any, **resolved: Any) -> dict[str, str]:
    """Returns the options that the output depends on, as texts by name.

    Options with ``recorded_as`` are left out: another setting records them.

    Args:
        options: An object whose fields state with ``changes_output`` whether they change the output.
        resolved: Resolved values that replace the requested ones; always recorded.
    """
    found = {
        name: resolved.get(name, one.value_in(options))
        for name, one in stated(type(options)).items()
        if name in resolved or (one.option.changes_output and not one.option.recorded_as)
    }
    known = stated(type(options))
    found = {
        name: value
        for name, value in found.items()
        if not (known[name].option.omit_default and value == known[name].default)
    }
    return {name: _recorded(value) for name, value in found.items() if value is not None}


def _recorded(value: Any) -> str:
    return os.path.realpath(value) if isinstance(value, Path) else str(value)


def flag(name: str) -> str:
    """Returns an option's name on the command line."""
    return f"--{name.replace('_', '-')}"


def bare(kind: Any) -> Any:
    """Returns the type without None; for ``tuple[X, ...]`` returns X."""
    if NoneType in (some := get_args(kind)):
        (kind,) = (one for one in some if one is not NoneType)
    return get_args(kind)[0] if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis else kind
