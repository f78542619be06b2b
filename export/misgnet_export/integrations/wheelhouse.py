"""Collects wheels for a machine without a network, which may differ from this one (``misgnet-export wheelhouse``).

pip evaluates markers of requirements ("; python_version < ...") for the Python that runs it. Packages that only an
older Python needs are therefore listed explicitly.
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
from misgnet_runtime.formatting import plural
from misgnet_runtime.storage.atomic import replace_file

PlatformName = Literal["jetpack6", "jetpack7", "x86-cuda12", "x86-cuda13"]
LIST = "requirements.txt"
_PROJECT = "misgnet-export"
_NVIDIA = "https://pypi.nvidia.com"  # has TensorRT's libraries; everything else is on PyPI
_BESIDES = "typing-extensions>=4.6"  # required on Python 3.10 by markers of other packages


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A kind of machine that installs from a wheelhouse. On a JetPack, TensorRT comes with the system."""

    title: str
    python: str
    architecture: str
    glibc: int  # newest minor version (2.x) that wheels may need
    cuda: int
    cuda_python: str = ""  # versions of cuda-python besides those for ``cuda``
    jetpack: bool = False

    @property
    def tags(self) -> list[str]:
        """pip's names of the platform, newest first."""
        numbered = [f"manylinux_2_{minor}_{self.architecture}" for minor in range(self.glibc, 16, -1)]
        return [*numbered, f"manylinux2014_{self.architecture}"]

    @property
    def requirements(self) -> list[str]:
        """Requirements to download, in the versions that this project's own metadata states."""
        gpu = _versions(self.python)
        cuda = gpu.pop("cuda-python") & SpecifierSet(f"=={self.cuda}.*") & SpecifierSet(self.cuda_python)
        gpu.pop("tensorrt")
        others = [] if self.jetpack else [f"{name}{versions}" for name, versions in gpu.items()]
        return [*map(str, needs(self.python)), _BESIDES, f"cuda-python{cuda}", *others, *self.sources]

    @property
    def sources(self) -> list[str]:
        """Requirements that are published only as source distributions."""
        return [] if self.jetpack else [f"tensorrt-cu{self.cuda}{_versions(self.python)['tensorrt']}"]

    @property
    def system(self) -> str:
        """Software that must be installed on the machine itself."""
        return _JETPACK if self.jetpack else "needs the NVIDIA driver"


_JETPACK = "TensorRT and its Python module come with JetPack (python3-libnvinfer); the environment must include them"
PLATFORMS: dict[PlatformName, Platform] = {
    # From 12.9 on, cuda-python contains the CUDA runtime of its own version. That of 12.9 refuses JetPack 6's driver,
    # which is for CUDA 12.6, with error 35 (cudaErrorInsufficientDriver). Earlier versions call the driver itself.
    "jetpack6": Platform(
        title="JetPack 6: Orin, TensorRT 10.3, CUDA 12.6", python="3.10", architecture="aarch64", glibc=35, cuda=12,
        cuda_python=">=12.6.1,<12.9", jetpack=True,
    ),
    "jetpack7": Platform(
        title="JetPack 7: Orin and Thor, TensorRT 10.16 (7.2.0) or 11.x (from 7.2.2), CUDA 13", python="3.12",
        architecture="aarch64", glibc=39, cuda=13, jetpack=True,
    ),
    "x86-cuda12": Platform(title="x86_64 with CUDA 12", python="3.12", architecture="x86_64", glibc=35, cuda=12),
    "x86-cuda13": Platform(title="x86_64 with CUDA 13", python="3.12", architecture="x86_64", glibc=35, cuda=13),
}  # fmt: skip


def needs(python: str, extra: str = "") -> list[Requirement]:
    """Returns what this project requires on a Python version, or what ``extra`` adds to it, without markers.

    Raises:
        UnavailableError: The project is not installed and so has no metadata.
    """
    try:
        stated = list(map(Requirement, requires(_PROJECT) or ()))
    except PackageNotFoundError:
        raise UnavailableError(
            f"{_PROJECT} is not installed, so its requirements are unknown; pip install it"
        ) from None
    found = [one for one in stated if ("extra" in str(one.marker)) == bool(extra)]
    where = {"python_version": python, "extra": extra}
    return [Requirement(str(one).partition(";")[0]) for one in found if not one.marker or one.marker.evaluate(where)]


def _versions(python: str) -> dict[str, SpecifierSet]:
    """Returns the versions of the GPU packages by name."""
    return {found.name: found.specifier for found in needs(python, "tensorrt")}


Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]
Log = Callable[[str], None]


def pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs pip. Setuptools builds in a temporary folder: an earlier build in a checkout would leak into the wheel."""
    command = python_command("pip", "--disable-pip-version-check", *arguments)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "setup.cfg")
        config.write_text(f"[build]\nbuild_base = {folder}/build\n")
        variables = environment("pip", DIST_EXTRA_CONFIG=str(config))
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def fill_wheelhouse(name: PlatformName, folder: Path, project: str | None, log: Log, run: Run = pip) -> None:
    """Writes the requirements list of platform ``name`` to ``folder`` and downloads or builds the missing wheels.

    Args:
        name: The platform to collect wheels for.
        folder: The folder to write to; existing wheels are kept.
        project: Source that pip builds this project from, a checkout or an address; None: the checkout that runs.
        log: Called with progress messages.
        run: Runs pip with the given arguments.

    Raises:
        InputError: ``folder`` is a file.
        UnavailableError: pip or the network is missing; the message names the missing wheels, the list is written.
    """
    platform = PLATFORMS[name]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output is {folder}, which is a file; name a folder (a partly filled wheelhouse is fine)")
    with replace_file(folder / LIST) as temporary:
        temporary.write_text(list_text(name))
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError(f"{folder / LIST} is written; to download the wheels, first run: python -m ensurepip")
    for source in (project or own_project(), *platform.sources):
        if not _wheels_of(source if source in platform.sources else _PROJECT, folder):
            log(f"building the wheel of {source}")
            _check(run(["wheel", "--no-deps", "-w", str(folder), source]), name, folder)
    log(f"downloading {plural(len(platform.requirements), 'package')} and their dependencies for {platform.title}")
    _check(run(["download", *download_arguments(platform, folder)]), name, folder)


def download_arguments(platform: Platform, folder: Path) -> list[str]:
    """Returns the arguments of ``pip download``."""
    tags = [word for tag in platform.tags for word in ("--platform", tag)]
    index = [] if platform.jetpack else ["--extra-index-url", _NVIDIA]
    return [
        "--only-binary=:all:", "--implementation", "cp", "--python-version", platform.python, *tags, *index,
        "--find-links", str(folder), "-d", str(folder), "-r", str(folder / LIST),
    ]  # fmt: skip


def list_text(name: PlatformName) -> str:
    """Returns the text of the requirements list, with the install commands as comments."""
    platform = PLATFORMS[name]
    lines = [f"# {platform.title}; Python {platform.python}, {platform.architecture}", *install_lines(name)]
    return "\n".join([lines[0], *(f"# {line}" for line in lines[1:]), *platform.requirements]) + "\n"


def install_lines(name: PlatformName) -> list[str]:
    """Returns the steps to install on the machine, to be run in the folder."""
    platform = PLATFORMS[name]
    site = "--system-site-packages " if platform.jetpack else ""
    return [
        platform.system,
        f"python{platform.python} -m venv {site}venv",
        f"venv/bin/pip install --no-index --find-links . -r {LIST} {_PROJECT}",
    ]


def own_project() -> str:
    """Returns the checkout that contains this module, or else the project's name for pip to look up."""
    checkout = Path(__file__).resolve().parents[3]
    return str(checkout) if (checkout / "pyproject.toml").is_file() else _PROJECT


def missing(platform: Platform, folder: Path) -> list[str]:
    """Returns the requirements, including the project itself, that have no wheel in ``folder``."""
    return [name for name in (_PROJECT, *platform.requirements) if not _wheels_of(name, folder)]


def _wheels_of(requirement: str, folder: Path) -> list[Path]:
    match = re.match(r"[\w.-]*\w", requirement)
    plain = re.sub(r"[-_.]+", "_", match[0]).lower() if match else ""
    return [path for path in folder.glob("*.whl") if path.name.split("-")[0].lower() == plain]


def _check(finished: subprocess.CompletedProcess[str], name: PlatformName, folder: Path) -> None:
    if finished.returncode == 0:
        return
    errors = [line for line in finished.stderr.splitlines() if line.startswith("ERROR:")]
    message = (errors or finished.stderr.splitlines() or ["no error message"])[-1].removeprefix("ERROR: ")
    lacking = ", ".join(missing(PLATFORMS[name], folder)) or "dependencies of the listed packages"
    raise UnavailableError(
        f"pip could not fill {folder}: {message}; {folder / LIST} is written; wheels still missing: {lacking}; rerun "
        "the command with network access"
    )
