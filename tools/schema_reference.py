"""Generates references of JSON files in Markdown, from the structs that write or read them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect as types

from cli_reference import cell
from misgnet_runtime.bundle import fields
from misgnet_runtime.storage.schema import Sha256

# Kinds of strings, by what docs/reference/manifest.md calls them.
STRINGS = {
    "text": fields.Text, "name": fields.Name, "engine name": fields.EngineName, "tensor name": fields.TensorName,
    "path": fields.FilePath, "SHA-256": Sha256,
}  # fmt: skip
ROLE = re.compile(r":\w+:`~?([^`]*)`")  # of reStructuredText: :func:`name`


ROOTS = {
    "manifest": "misgnet_runtime.bundle.manifest.Manifest",
    "bench": "misgnet_runtime.measure.bench.report.BenchReport",
    "tune": "misgnet_runtime.measure.tune.TuneReport",
    "choice": "misgnet_runtime.inference.choice.Choice",
    "parity": "misgnet_runtime.accuracy.parity.ParityReport",
    "plan": "misgnet_export.evidence.PlanRecord",
}


def struct_reference(name: str) -> str:
    """Returns a section for each struct of a kind of file: its description, and a table of its fields."""
    level = "##" if name == "manifest" else "###"
    return "\n".join(line for struct in structs(root(name)) for line in section(struct, name, level)) + "\n"


def root(name: str) -> type:
    """Returns the outermost struct of a kind of file."""
    module, _, struct = ROOTS[name].rpartition(".")
    found: type = getattr(import_module(module), struct)
    return found


def structs(root: type) -> list[type]:
    """Returns ``root`` and every struct that its fields hold, each once, in the order of the fields."""
    found = [root]
    for struct in found:
        for field in types.type_info(struct).fields:  # type: ignore[attr-defined]
            found += [one for one in _held(field.type) if one not in found]
    return found


def section(struct: type, name: str, level: str) -> Iterator[str]:
    """Yields the lines of one struct's section."""
    comments = field_comments(struct)
    about = prose(inspect.cleandoc(struct.__dict__["__doc__"] or ""))
    yield from (f"{level} {struct.__name__} {{#{anchor(struct, name)}}}", "", about, "")
    head = ["field", "type", "default", *(["description"] if any(comments.values()) else [])]
    yield from ('<div class="fields" markdown>', "", row(head), row(["---"] * len(head)))
    for field in types.type_info(struct).fields:  # type: ignore[attr-defined]
        described = cell(prose(comments.get(field.encode_name, "")))
        yield row([f"`{field.encode_name}`", shown(field.type, name), default(field), described][: len(head)])
    yield from ("", "</div>", "")


def row(cells: list[str]) -> str:
    """Returns a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def anchor(struct: type, name: str) -> str:
    """Returns the identifier of a section; ``name``: the kind of file."""
    return f"{name}-{struct.__name__.lower()}"


def field_comments(struct: type) -> dict[str, str]:
    """Returns the comment of each field, from the end of its line or from the lines above it."""
    lines = Path(inspect.getfile(struct)).read_text(encoding="utf-8").splitlines()
    tree = ast.parse("\n".join(lines))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == struct.__name__).body
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = _comment(lines, node)
    return found


def _comment(lines: list[str], node: ast.AnnAssign) -> str:
    """Returns the comment of the field at ``node``, "" if it has none."""
    last = (node.end_lineno or node.lineno) - 1
    behind = lines[last].encode()[node.end_col_offset :].decode().strip()
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    return " ".join([*above, behind.lstrip("# ")]).strip()


PLAIN = {
    types.IntType: "integer", types.FloatType: "number", types.BoolType: "boolean", types.NoneType: "null",
    types.AnyType: "any value", types.RawType: "any value", types.DateTimeType: "time (RFC 3339)",
}  # fmt: skip


def shown(kind: Any, name: str) -> str:
    """Returns a field's type in Markdown: JSON's names, limits, and links to structs."""
    if isinstance(kind, types.StructType):
        return f"[{kind.cls.__name__}](#{anchor(kind.cls, name)})"
    if isinstance(kind, types.StrType):
        return _string(kind)
    if type(kind) in PLAIN:
        return PLAIN[type(kind)] + _limits(kind)
    return _compound(kind, name)


def _compound(kind: Any, name: str) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(shown(part, name) for part in kind.types)
    if isinstance(kind, types.LiteralType):
        return ", ".join(f'`"{value}"`' for value in kind.values)
    if isinstance(kind, (types.ListType, types.VarTupleType)):
        return f"array of {shown(kind.item_type, name)}" + _limits(kind, " items")
    if isinstance(kind, types.TupleType):
        items = dict.fromkeys(shown(part, name) for part in kind.item_types)
        return f"array of {len(kind.item_types)}: {', '.join(items)}"
    if isinstance(kind, types.DictType):
        return f"object of {shown(kind.value_type, name)}"
    raise TypeError(f"tools/schema_reference.py cannot describe {kind}; add it to PLAIN or _compound")


LIMITS = {
    "ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "min_length": "at least {}",
    "max_length": "at most {}",
}  # fmt: skip


def _limits(kind: Any, unit: str = "") -> str:
    given = {name: value for name in LIMITS if (value := getattr(kind, name, None)) is not None}
    found = ", ".join(LIMITS[name].format(f"{value:,}") + unit for name, value in given.items())
    return f" ({found})" if found else ""


def _string(kind: types.StrType) -> str:
    """Returns a string's kind by its name in STRINGS, or its limits if it has no name there."""
    for name, annotated in STRINGS.items():
        meta = get_args(annotated)[1]
        if (meta.pattern, meta.max_length) == (kind.pattern, kind.max_length):
            return name
    return "string" + _limits(kind, " characters")


def default(field: Any) -> str:
    """Returns the default of a field as JSON; "required" if it has none."""
    if field.required:
        return "*required*"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    return f"`{msgspec.json.encode(value).decode()}`"


def _held(kind: Any) -> Iterator[type]:
    if isinstance(kind, types.StructType):
        yield kind.cls
    for name in ("item_type", "value_type"):
        if hasattr(kind, name):
            yield from _held(getattr(kind, name))
    for name in ("types", "item_types"):
        for part in getattr(kind, name, ()):
            yield from _held(part)


def prose(text: str) -> str:
    """Returns a docstring as Markdown."""
    return ROLE.sub(r"`\1`", text).replace("``", "`")
