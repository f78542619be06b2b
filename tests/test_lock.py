"""Tests that requirements.lock is complete and agrees with pyproject.toml, and how dev.py installs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.paths import ROOT

sys.path.insert(0, str(ROOT))

import dev

TEXT = dev.LOCK.read_text(encoding="utf-8")
MACHINES = (
    ("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"),
    ("win32", "Windows", "AMD64"),
)  # fmt: skip
# What a marker can depend on, in each environment that the lock is for.
ENVIRONMENTS = {
    f"{system}-{machine}-{python}": {
        "sys_platform": system, "platform_system": name, "platform_machine": machine, "python_version": python,
        "python_full_version": f"{python}.9", "extra": "",
    }
    for system, name, machine in MACHINES
    for python in ("3.11", "3.12", "3.13")
}  # fmt: skip


def locked(environment: dict[str, str]) -> dict[str, str]:
    """Returns the version of each package that the lock installs in an environment."""
    pins = [Requirement(line) for line in dev.locked_pins().splitlines()]
    applying = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    names = [canonicalize_name(pin.name) for pin in applying]
    assert len(names) == len(set(names))
    return {name: str(pin.specifier).removeprefix("==") for name, pin in zip(names, applying, strict=True)}


def required() -> list[Requirement]:
    """Returns what the project and the extras of .venv require, with the extras that these name."""
    project = dev.project()
    extras, given, found = project["optional-dependencies"], list(dev.EXTRAS), list(project["dependencies"])
    for extra in given:
        for text in extras[extra]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                given += sorted(requirement.extras - set(given))
            else:
                found.append(text)
    return [Requirement(text) for text in (*found, *dev.TORCH_NEEDS)]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_lock_satisfies_every_requirement(name: str) -> None:
    """If it fails, run `python3 dev.py lock`."""
    versions = locked(ENVIRONMENTS[name])
    applying = [one for one in required() if one.marker is None or one.marker.evaluate(ENVIRONMENTS[name])]
    found = {str(one): versions.get(canonicalize_name(one.name), "0") for one in applying if one.name != "torch"}
    wrong = {one: version for one, version in found.items() if not Requirement(one).specifier.contains(version)}
    assert len(found) > 30 and not wrong


def test_every_entry_has_hashes() -> None:
    """dev.py reads the whole file: beside its entries there is only the comment at the top."""
    rest = dev.ENTRY.sub("", TEXT)
    assert rest and all(line.startswith("#") for line in rest.splitlines())


def test_pytorch_is_pinned_apart_within_its_bounds() -> None:
    torch = Requirement(dev.TORCH)
    bounds = next(one for one in required() if one.name == "torch")
    assert "torch" not in locked(ENVIRONMENTS["linux-x86_64-3.11"])
    assert bounds.specifier.contains(str(torch.specifier).removeprefix("=="))


def test_everything_but_pytorch_is_installed_by_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(dev, "create", lambda where, files, steps, why: made.update(files=files, steps=steps))
    dev.set_up()
    backend, everything, torch, project = ([str(word) for word in step] for step in made["steps"])
    for step in (backend, everything):
        assert {"--require-hashes", "--no-deps", "--no-build-isolation"} <= set(step)
    files = {str(path): text for path, text in made["files"].items()}
    assert files[backend[-1]].startswith("setuptools==") and files[everything[-1]] == TEXT
    assert torch == [dev.TORCH] and project == ["--no-deps", "--no-build-isolation", "-e", "."]


def test_environment_is_made_anew_only_if_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[tuple[object, ...]] = []
    monkeypatch.setattr(dev, "pip_install", lambda where, *arguments: installed.append(arguments))
    monkeypatch.setattr(dev.venv, "create", lambda where, **_: Path(where).mkdir(exist_ok=True))
    file = tmp_path / "new" / "pins.txt"
    for pins, count in (("a==1", 1), ("a==1", 1), ("a==2", 2)):
        dev.create(tmp_path / "new", {file: pins}, [["-r", file]], "a test")
        assert len(installed) == count and file.read_text(encoding="utf-8") == pins
