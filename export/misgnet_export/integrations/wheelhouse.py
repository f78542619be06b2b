"""``misgnet-export wheelhouse``: what a machine without a network installs from, for another machine than this one.

pip reads the conditions of requirements ("; python_version < ...") as of the Python that runs it, so what an older
Python needs besides stands in the lists.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from misgnet_runtime.children import environment, python_command
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.storage.atomic import replace_file

PlatformName = Literal["jetpack6", "jetpack7", "x86-cuda12", "x86-cuda13"]
LIST = "requirements.txt"
_PROJECT = "misgnet-export"
_NVIDIA = "https://pypi.nvidia.com"  # where TensorRT's libraries are; PyPI has the rest
_BESIDES = "typing-extensions>=4.6"  # of others' conditions, what Python 3.10 needs


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A machine that installs from a wheelhouse. On a JetPack, TensorRT is the system's."""

    title: str
    python: str
    architecture: str
    glibc: int  # newest minor version (2.x) that wheels may need
    cuda: int
    jetpack: bool = False

    @property
    def tags(self) -> list[str]:
        """pip's names of the platform, the newest first."""
        numbered = [f"manylinux_2_{minor}_{self.architecture}" for minor in range(self.glibc, 16, -1)]
        return [*numbered, f"manylinux2014_{self.architecture}"]

    @property
    def requirements(self) -> list[str]:
        """What is downloaded, in the versions that this project's own metadata asks for."""
        gpu = _versions(self.python)
        cuda = gpu.pop("cuda-python") & SpecifierSet(f"=={self.cuda}.*")
        gpu.pop("tensorrt")
        others = [] if self.jetpack else [f"{name}{versions}" for name, versions in gpu.items()]
        return [*map(str, needs(self.python)), _BESIDES, f"cuda-python{cuda}", *others, *self.sources]

    @property
    def sources(self) -> list[str]:
        """Of what no wheel is published."""
        return [] if self.jetpack else [f"tensorrt-cu{self.cuda}{_versions(self.python)['tensorrt']}"]

    @property
    def system(self) -> str:
        """What the machine itself must have."""
        return _JETPACK if self.jetpack else "needs the NVIDIA driver"


_JETPACK = "TensorRT and its Python module come with JetPack (python3-libnvinfer), which the environment must see"
PLATFORMS: dict[PlatformName, Platform] = {
    "jetpack6": Platform(
        title="JetPack 6: Orin, TensorRT 10.3, CUDA 12.6", python="3.10", architecture="aarch64", glibc=35, cuda=12,
        jetpack=True,
    ),
    "jetpack7": Platform(
        title="JetPack 7: Orin and Thor, TensorRT 10.16 to 11.x, CUDA 13", python="3.12", architecture="aarch64",
        glibc=39, cuda=13, jetpack=True,
    ),
    "x86-cuda12": Platform(title="x86_64 with CUDA 12", python="3.12", architecture="x86_64", glibc=35, cuda=12),
    "x86-cuda13": Platform(title="x86_64 with CUDA 13", python="3.12", architecture="x86_64", glibc=35, cuda=13),
}  # fmt: skip


def needs(python: str, extra: str = "") -> list[Requirement]:
    """What this project needs on a Python, or what an extra adds to it, without the conditions.

    Raises UnavailableError where the project is not installed, and has no metadata.
    """
    try:
        stated = list(map(Requirement, requires(_PROJECT) or ()))
    except PackageNotFoundError:
        raise UnavailableError(f"{_PROJECT} is not installed, so what it needs is unknown; pip install it") from None
    found = [one for one in stated if ("extra" in str(one.marker)) == bool(extra)]
    where = {"python_version": python, "extra": extra}
    return [Requirement(str(one).partition(";")[0]) for one in found if not one.marker or one.marker.evaluate(where)]


def _versions(python: str) -> dict[str, SpecifierSet]:
    """The versions of what runs on a GPU, by package."""
    return {found.name: found.specifier for found in needs(python, "tensorrt")}


Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]
Tell = Callable[[str], None]


def pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Setuptools builds in a folder of its own: in a checkout, what an earlier build left would get into the wheel."""
    command = python_command("pip", "--disable-pip-version-check", *arguments)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "setup.cfg")
        config.write_text(f"[build]\nbuild_base = {folder}/build\n")
        variables = environment("pip", DIST_EXTRA_CONFIG=str(config))
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def fill_wheelhouse(name: PlatformName, folder: Path, project: str | None, tell: Tell, run: Run = pip) -> None:
    """Write the list of what ``name`` needs into ``folder``, then what is not there yet, as far as a network is.

    ``project``: what pip may build this project from, a checkout or an address; without, the checkout that runs.
    Raises UnavailableError that names what is missing where pip or the network is; the list is there nevertheless.
    """
    platform = PLATFORMS[name]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"-o is {folder}, which is a file; name a folder, which may be one that is filled already")
    with replace_file(folder / LIST) as temporary:
        temporary.write_text(list_text(name))
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError(f"{folder / LIST} is written; to download what it names, run first: python -m ensurepip")
    for source in (project or own_project(), *platform.sources):
        if not _wheels_of(source if source in platform.sources else _PROJECT, folder):
            tell(f"building the wheel of {source}")
            _check(run(["wheel", "--no-deps", "-w", str(folder), source]), name, folder)
    tell(f"downloading {len(platform.requirements)} packages and what they need, for {platform.title}")
    _check(run(["download", *download_arguments(platform, folder)]), name, folder)


def download_arguments(platform: Platform, folder: Path) -> list[str]:
    """Of ``pip download``."""
    tags = [word for tag in platform.tags for word in ("--platform", tag)]
    index = [] if platform.jetpack else ["--extra-index-url", _NVIDIA]
    return [
        "--only-binary=:all:", "--implementation", "cp", "--python-version", platform.python, *tags, *index,
        "--find-links", str(folder), "-d", str(folder), "-r", str(folder / LIST),
    ]  # fmt: skip


def list_text(name: PlatformName) -> str:
    """The list, with the lines that install from its folder."""
    platform = PLATFORMS[name]
    lines = [f"# {platform.title}; Python {platform.python}, {platform.architecture}", *install_lines(name)]
    return "\n".join([lines[0], *(f"# {line}" for line in lines[1:]), *platform.requirements]) + "\n"


def install_lines(name: PlatformName) -> list[str]:
    """On the machine, in the folder."""
    platform = PLATFORMS[name]
    site = "--system-site-packages " if platform.jetpack else ""
    return [
        platform.system,
        f"python{platform.python} -m venv {site}venv",
        f"venv/bin/pip install --no-index --find-links . -r {LIST} {_PROJECT}",
    ]


def own_project() -> str:
    """The checkout that this module lies in, or the project's name for pip to look up."""
    checkout = Path(__file__).resolve().parents[2]
    return str(checkout) if (checkout / "pyproject.toml").is_file() else _PROJECT


def missing(platform: Platform, folder: Path) -> list[str]:
    """Of the list and the project itself, what has no wheel in ``folder``."""
    return [name for name in (_PROJECT, *platform.requirements) if not _wheels_of(name, folder)]


def _wheels_of(requirement: str, folder: Path) -> list[Path]:
    match = re.match(r"[\w.-]*\w", requirement)
    plain = re.sub(r"[-_.]+", "_", match[0]).lower() if match else ""
    return [path for path in folder.glob("*.whl") if path.name.split("-")[0].lower() == plain]


def _check(ended: subprocess.CompletedProcess[str], name: PlatformName, folder: Path) -> None:
    if ended.returncode == 0:
        return
    errors = [line for line in ended.stderr.splitlines() if line.startswith("ERROR:")]
    said = (errors or ended.stderr.splitlines() or ["no word"])[-1].removeprefix("ERROR: ")
    lacks = ", ".join(missing(PLATFORMS[name], folder)) or "what these need"
    raise UnavailableError(
        f"pip could not fill {folder}: {said}; {folder / LIST} is written, wheels are missing of: {lacks}; run the "
        "same command where there is a network"
    )
