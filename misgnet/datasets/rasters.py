"""Which files of a download are the two dates and the change label of a scene: told by their names."""

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
    """The three rasters of a scene, and the others that were found."""

    rasters: dict[str, Path]
    skipped: tuple[Skipped, ...]


def find_rasters(source: Path, given: Mapping[Role, Path]) -> Found:
    """The rasters of ``source``; those ``given`` are taken as they are.

    InputError that lists what was found where a raster is missing or more than one could be meant.
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
            skipped.append(Skipped(path, f"--{role} names another file"))
        else:
            by_role[role].append(path)
    chosen = {role: given[role] if role in given else _only(role, source, by_role, skipped) for role in ROLES}
    _check_distinct(chosen)
    return Found({str(role): path for role, path in chosen.items()}, tuple(skipped))


def classify(path: Path) -> tuple[Role | None, str]:
    """The role of a file by its name, else by its folders from the nearest on; without a role, why."""
    if any(part.startswith(".") for part in path.parts):
        return None, "a hidden file"
    for name in (path.stem, *reversed(path.parts[:-1])):
        words = set(re.split(r"[^a-z0-9]+", name.lower()))
        dates = [role for role in ROLES[:2] if words & _WORDS[role]]
        if words & _WORDS["label"]:
            # before_label.tif: the buildings of one date, not what changed
            if len(dates) == 1 and not words & {"change", "changes"}:
                return None, "a label of one date, not of the change"
            return "label", ""
        if len(dates) == 1:
            return dates[0], ""
    return None, "neither a date nor a label by its name"


def _only(role: Role, source: Path, by_role: Mapping[Role, list[Path]], skipped: list[Skipped]) -> Path:
    if len(by_role[role]) == 1:
        return by_role[role][0]
    problem = "is missing" if not by_role[role] else f"could be any of {len(by_role[role])}"
    if not skipped and not any(by_role.values()):
        raise InputError(f"{source} holds no .tif or .tiff, and three are needed; {describe(source)}")
    lists = [f"{name}: {_shown(source, files)}" for name, files in by_role.items() if files]
    if skipped:
        lists.append(f"neither: {_shown(source, [item.path for item in skipped])}")
    raise InputError(
        f"the {role} raster of {source} {problem}; name the rasters with --before FILE, --after FILE and "
        f"--label FILE; found as {'; '.join(lists)}"
    )


def _shown(source: Path, files: list[Path]) -> str:
    more = f" and {len(files) - 6} more" if len(files) > 6 else ""
    return ", ".join(str(path.relative_to(source)) for path in files[:6]) + more


def _check_distinct(chosen: Mapping[Role, Path]) -> None:
    seen: dict[Path, Role] = {}
    for role, path in chosen.items():
        if other := seen.get(path.resolve()):
            raise UsageError(f"{path} is named as --{other} and as --{role}; a scene has three rasters")
        seen[path.resolve()] = role
