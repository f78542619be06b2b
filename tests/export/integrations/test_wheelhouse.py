"""Tests the wheelhouse: its list, the arguments of pip, and the messages if there is no network."""

from __future__ import annotations

import configparser
import itertools
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import get_args

import pytest

from misgnet_export.integrations import wheelhouse
from misgnet_export.integrations.wheelhouse import (
    LIST,
    PLATFORMS,
    PlatformName,
    fill_wheelhouse,
    install_lines,
    missing,
    own_project,
)
from misgnet_runtime.errors import InputError, UnavailableError
from support.paths import ROOT

tomllib = pytest.importorskip("tomllib", reason="the host side needs Python 3.11")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(autouse=True)
def metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the installed metadata by that of this checkout."""
    gpu = [line for line in PROJECT["optional-dependencies"]["tensorrt"] if ";" not in line]
    lines = [*PROJECT["dependencies"], *(f'{line}; extra == "tensorrt"' for line in gpu)]
    monkeypatch.setattr(wheelhouse, "requires", lambda _: lines)


def test_the_own_project_is_the_checkout_that_runs() -> None:
    assert own_project() == str(ROOT)


class Pip:
    """Makes a wheel of everything that it is asked for, except ``absent``."""

    def __init__(self, *absent: str) -> None:
        self.absent, self.calls = absent, []

    def __call__(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.calls.append(list(arguments))
        folder = Path(arguments[arguments.index("-w" if arguments[0] == "wheel" else "-d") + 1])
        names = [Path(arguments[-1]).name] if arguments[0] == "wheel" else (folder / LIST).read_text().splitlines()
        if names == [ROOT.name]:
            names = ["misgnet-export"]
        for name in (re.match(r"[\w-]+", line)[0] for line in names if not line.startswith("#")):
            if name in self.absent:
                return subprocess.CompletedProcess([], 1, "", f"WARNING: x\nERROR: No matching distribution for {name}")
            (folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl").touch()
        return subprocess.CompletedProcess([], 0, "", "")


def test_every_platform_has_a_list() -> None:
    assert PLATFORMS.keys() == set(get_args(PlatformName))


@pytest.mark.parametrize("name", get_args(PlatformName))
def test_lists_consist_of_the_projects_own_requirements(name: PlatformName) -> None:
    listed = PLATFORMS[name].requirements
    names = [re.match(r"[\w-]+", line)[0] for line in listed]
    needed = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
    assert len(set(names)) == len(names) and needed - {"tomli"} <= set(names)
    assert ("tomli" in names) == (PLATFORMS[name].python == "3.10") and not any(";" in line for line in listed)
    cuda = "12" if name in ("jetpack6", "x86-cuda12") else "13"
    # JetPack 6 has a driver for CUDA 12.6, which the CUDA runtime in cuda-python 12.9 refuses.
    more = "<12.9,==12.*,>=12.6,>=12.6.1" if name == "jetpack6" else f"=={cuda}.*,>=12.6"
    assert f"cuda-python{more}" in listed
    assert [line for line in listed if "tensorrt" in line] == (
        [] if "jetpack" in name else [f"tensorrt-cu{cuda}<12,>=10.3"]
    )


def test_requirements_depend_on_the_python_version(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = [
        'numpy>=1.26', 'Pillow>=13.0; python_version >= "3.11"', 'Pillow>=12.3; python_version < "3.11"',
        'cuda-python>=12.6; sys_platform == "linux" and extra == "rtx"', 'tensorrt<12,>=10.3; extra == "tensorrt"',
    ]  # fmt: skip
    monkeypatch.setattr(wheelhouse, "requires", lambda _: stated)
    assert [*map(str, wheelhouse.needs("3.10"))] == ["numpy>=1.26", "Pillow>=12.3"]
    assert [*map(str, wheelhouse.needs("3.12"))] == ["numpy>=1.26", "Pillow>=13.0"]
    assert [*map(str, wheelhouse.needs("3.12", "tensorrt"))] == ["tensorrt<12,>=10.3"]


def test_missing_metadata_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing_metadata(_: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr(wheelhouse, "requires", missing_metadata)
    with pytest.raises(UnavailableError, match="misgnet-export is not installed"):
        fill_wheelhouse("jetpack6", tmp_path, None, lambda _: None, Pip())


@pytest.mark.parametrize(
    ("name", "python", "first"),
    [("jetpack6", "3.10", "manylinux_2_35_aarch64"), ("x86-cuda13", "3.12", "manylinux_2_35_x86_64")],
)
def test_pip_downloads_wheels_for_the_other_machine(
    tmp_path: Path, name: PlatformName, python: str, first: str
) -> None:
    run = Pip()
    fill_wheelhouse(name, tmp_path / "w", str(ROOT), lambda _: None, run)
    download = run.calls[-1]
    assert download[:2] == ["download", "--only-binary=:all:"]
    assert download[download.index("--python-version") + 1] == python
    tags = [tag for word, tag in itertools.pairwise(download) if word == "--platform"]
    assert tags[0] == first and tags[-1].startswith("manylinux2014_") and len(tags) == len(set(tags))
    assert [call[-1] for call in run.calls[:-1]] == [str(ROOT), *PLATFORMS[name].sources]
    assert missing(PLATFORMS[name], tmp_path / "w") == []


def test_list_contains_install_commands_and_requirements(tmp_path: Path) -> None:
    fill_wheelhouse("jetpack6", tmp_path, None, lambda _: None, Pip())
    text = (tmp_path / LIST).read_text()
    assert all(f"# {line}\n" in text for line in install_lines("jetpack6"))
    assert "venv --system-site-packages venv" in text and "--no-index --find-links ." in text
    assert "numpy>=1.26\n" in text and "Pillow>=12.3\n" in text


def test_the_wheel_is_built_from_the_checkout_that_runs(tmp_path: Path) -> None:
    run = Pip()
    fill_wheelhouse("jetpack6", tmp_path, None, lambda _: None, run)
    assert run.calls[0][-1] == str(ROOT)


def test_existing_wheel_is_not_built_again(tmp_path: Path) -> None:
    fill_wheelhouse("jetpack7", tmp_path, None, lambda _: None, Pip())
    again = Pip()
    fill_wheelhouse("jetpack7", tmp_path, None, lambda _: None, again)
    assert [call[0] for call in again.calls] == ["download"]


def test_missing_wheels_are_reported_and_the_list_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"No matching distribution for numpy; .*missing: .*numpy.*network"):
        fill_wheelhouse("jetpack6", tmp_path, None, lambda _: None, Pip("numpy"))
    assert (tmp_path / LIST).is_file()
    found = missing(PLATFORMS["jetpack6"], tmp_path)
    assert "misgnet-export" not in found and "numpy>=1.26" in found and "msgspec>=0.19" not in found


def test_missing_pip_is_reported_and_the_list_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheelhouse.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"is written; to download the wheels, first run"):
        fill_wheelhouse("jetpack6", tmp_path, None, lambda _: None, Pip())
    assert (tmp_path / LIST).is_file()


def test_output_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="which is a file"):
        fill_wheelhouse("jetpack6", tmp_path / "file", None, lambda _: None, Pip())


def test_wheel_is_built_outside_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setuptools reads the file named by this variable; otherwise the checkout's build/ would get into the wheel."""
    seen: list[Path] = []

    def run(command: Sequence[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        settings = configparser.ConfigParser()
        assert settings.read(env["DIST_EXTRA_CONFIG"])
        seen.append(Path(settings["build"]["build_base"]))
        assert seen[0].parent.is_dir() and "PATH" in env
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    wheelhouse.pip(["wheel", "."])
    assert seen[0].is_absolute() and not seen[0].parent.exists()
