"""Identifies the rasters of the two dates and the change label of a scene by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from misgnet.datasets.layouts import describe
from misgnet.datasets.units import Skipped
from misgnet_runtime.errors import InputError, UsageError

Role = Literal["before", "after", "label"]
ROLES: tuple[Role, ...] = ("before", "after", "label")
_WORDS: dict[Role, frozenset[str]] = {
    "before": frozenset({"before", "2012", "a", "t1", "time1"}),
    "after": frozenset({"after", "2016", "b", "t2", "time2"}),
    "label": frozenset({"label", "labels", "change", "changes", "mask", "masks", "gt"}),
}
_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Found:
    """The rasters in a download."""

    rasters: dict[str, Path]  # the three rasters of the scene, by role
    skipped: tuple[Skipped, ...]  # other rasters


def find_rasters(source: Path, given: Mapping[Role, Path]) -> Found:
    """Finds the rasters in ``source``; ``given`` rasters are used without a search.

    Raises InputError, which lists the rasters that were found, if one is missing or ambiguous.
    """
    if not source.is_dir():
        raise InputError(f"folder {source} does not exist")
    by_role: dict[Role, list[Path]] = {role: [] for role in ROLES}
    skipped = []
    taken = {path.resolve() for path in given.values()}
    for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in _SUFFIXES and p.resolve() not in taken):
        role, reason = classify(path.relative_to(source))
        if role is None:
            skipped.append(Skipped(path, reason))
        elif role in given:
            skipped.append(Skipped(path, f"--{role} selects another file"))
        else:
            by_role[role].append(path)
    chosen = {role: given[role] if role in given else _only(role, source, by_role, skipped) for role in ROLES}
    _check_distinct(chosen)
    return Found({str(role): path for role, path in chosen.items()}, tuple(skipped))


def classify(path: Path) -> tuple[Role | None, str]:
    """Returns the role of a file, by its name or else by its folders from the innermost on, or None and the reason."""
    if any(part.startswith(".") for part in path.parts):
        return None, "a hidden file"
    for name in (path.stem, *reversed(path.parts[:-1])):
        words = set(re.split(r"[^a-z0-9]+", name.lower()))
        dates = [role for role in ROLES[:2] if words & _WORDS[role]]
        if words & _WORDS["label"]:
            # for example before_label.tif: the buildings of one date, not the change
            if len(dates) == 1 and not words & {"change", "changes"}:
                return None, "a label of one date, not a change label"
            return "label", ""
        if len(dates) == 1:
            return dates[0], ""
    return None, "its name indicates neither a date nor a label"


def _only(role: Role, source: Path, by_role: Mapping[Role, list[Path]], skipped: list[Skipped]) -> Path:
    if len(by_role[role]) == 1:
        return by_role[role][0]
    problem = "is missing" if not by_role[role] else f"is ambiguous: {len(by_role[role])} files match"
    if not skipped and not any(by_role.values()):
        raise InputError(f"{source} contains no .tif or .tiff files; three are required; {describe(source)}")
    lists = [f"{name}: {_shown(source, files)}" for name, files in by_role.items() if files]
    if skipped:
        lists.append(f"other: {_shown(source, [item.path for item in skipped])}")
    raise InputError(
        f"the {role} raster of {source} {problem}; name the rasters with --before FILE, --after FILE and "
        f"--label FILE (found: {'; '.join(lists)})"
    )


def _shown(source: Path, files: list[Path]) -> str:
    more = f" and {len(files) - 6} more" if len(files) > 6 else ""
    return ", ".join(str(path.relative_to(source)) for path in files[:6]) + more


def _check_distinct(chosen: Mapping[Role, Path]) -> None:
    seen: dict[Path, Role] = {}
    for role, path in chosen.items():
        if other := seen.get(path.resolve()):
            raise UsageError(f"{path} is used for --{other} and --{role}; a scene has three different rasters")
        seen[path.resolve()] = role
