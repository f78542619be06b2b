"""Tests that dataclasses with more than five fields are keyword-only; ruff checks functions (PLR0917).

msgspec's Structs are exempt: they mirror JSON with a documented order of fields, and most are created by decoding.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from support.paths import ROOT

FOLDERS = ("misgnet", "calibration", "export", "runtime", "benchmarks", "tests", "docs", "examples")
MOST = 5  # as for functions: more positional arguments are hard to count


def offenders(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line and name of each dataclass in ``source`` with too many fields that may be positional."""
    classes = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)}
    for name, node in classes.items():
        decorator = _dataclass(node)
        if decorator is not None and len(_positional(node, classes)) > MOST:
            yield node.lineno, name


def _positional(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Returns the fields that may be positional, including inherited ones of dataclasses in the same module."""
    bases = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    found = {name for base in bases for name in _positional(base, classes)}
    decorator = _dataclass(node)
    if decorator is None or "kw_only=True" in ast.unparse(decorator):
        return found
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    return found | {part.target.id for part in fields if not _is_no_parameter(part)}


def _is_no_parameter(field: ast.AnnAssign) -> bool:
    """Returns whether the field is not a parameter of ``__init__``."""
    value = ast.unparse(field.value) if field.value else ""
    return "ClassVar" in ast.unparse(field.annotation) or "init=False" in value


def _dataclass(node: ast.ClassDef) -> ast.expr | None:
    names = [(one, one.func if isinstance(one, ast.Call) else one) for one in node.decorator_list]
    return next((one for one, name in names if ast.unparse(name).rpartition(".")[2] == "dataclass"), None)


def test_long_dataclasses_are_keyword_only() -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 300
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in files
        for line, name in offenders(path.read_text(encoding="utf-8"))
    ]
    assert found == [], "more than five fields: make them kw_only=True"


SIX = "    a: int\n    b: int\n    c: int\n    d: int\n    e: int\n    f: int\n"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (f"@dataclass\nclass A:\n{SIX}", ["A"]),
        (f"@dataclasses.dataclass(frozen=True)\nclass A:\n{SIX}", ["A"]),
        (f"def late():\n  @dataclass(frozen=True)\n  class A:\n{SIX}", ["A"]),
        (
            f"@dataclass\nclass A:\n    a: int\n    b: int\n@dataclass\nclass B(A):\n    c: int\n    d: int\n{SIX}",
            ["B"],
        ),
        (f"@dataclass(frozen=True, kw_only=True)\nclass A:\n{SIX}", []),
        (f"@dataclass\nclass A:\n{SIX.replace('f: int', 'f: ClassVar[int] = 1')}", []),
        (f"@dataclass\nclass A:\n{SIX.replace('f: int', 'f: int = field(init=False)')}", []),
        (f"class A(Struct, frozen=True):\n{SIX}", []),
    ],
)
def test_check_finds_long_positional_dataclasses(source: str, names: list[str]) -> None:
    assert [name for _, name in offenders(source)] == names
