"""Creates and reuses a virtual environment for each contender, because their dependencies conflict."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from benchmarks.contest.guest import ContenderFailed, foreign_environment
from misgnet_runtime.children import python_command
from misgnet_runtime.errors import InputError

REQUIREMENTS = Path(__file__).with_name("requirements")


def interpreters(cache: Path, limit_s: float) -> Callable[[str], Path]:
    """Returns a function like :func:`prepare` that tries each environment once; a failed one fails again at once."""
    known: dict[str, Path | ContenderFailed] = {}

    def python_of(name: str) -> Path:
        if name not in known:
            try:
                known[name] = prepare(name, cache, limit_s)
            except ContenderFailed as error:
                known[name] = error
        found = known[name]
        if isinstance(found, ContenderFailed):
            raise found
        return found

    return python_of


def prepare(name: str, cache: Path, limit_s: float) -> Path:
    """Returns the interpreter of the environment ``name`` in ``cache``; installs it if it is new or its pins changed.

    Raises:
        ContenderFailed: Installation failed; the message includes pip's.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    folder = cache.resolve() / name
    stamp = folder / "installed"
    if not (stamp.is_file() and stamp.read_text() == digest):
        print(f"installing {', '.join(pins(requirements))} into {name}'s environment", file=sys.stderr, flush=True)
        _create(folder)
        _install(folder / "bin" / "python", requirements, limit_s)
        stamp.write_text(digest)
    return folder / "bin" / "python"


def pins(requirements: Path) -> dict[str, str]:
    """Returns versions by package; raises InputError for a line without a pin or a reason."""
    found = {}
    for line in requirements.read_text(encoding="utf-8").splitlines():
        wanted, _, reason = line.partition("#")
        if not wanted.strip():
            continue
        name, _, version = wanted.strip().partition("==")
        if not version or not reason.strip():
            raise InputError(f"{requirements}: '{line}' is not a pin with a reason; expected NAME==VERSION  # REASON")
        found[name.partition("[")[0]] = version
    return found


def _create(folder: Path) -> None:
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:  # such as a missing ensurepip, or a full disk
        raise ContenderFailed(f"the environment {folder.name} cannot be created: {error}") from error


def _install(python: Path, requirements: Path, limit_s: float) -> None:
    options = ("--quiet", "--disable-pip-version-check", "-r", str(requirements))
    command = python_command("pip", "install", *options, python=str(python))
    try:
        done = subprocess.run(
            command, check=False, timeout=limit_s, stderr=subprocess.PIPE, text=True, env=foreign_environment()
        )
    except subprocess.TimeoutExpired:
        raise ContenderFailed(f"{requirements.name} was not installed within {limit_s / 60:g} minutes") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no message"]
        raise ContenderFailed(f"{requirements.name} cannot be installed: {lines[-1]}")
