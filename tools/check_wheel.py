#!/usr/bin/env python3
"""Builds the wheel, installs it into a clean environment outside the checkout, and runs a bundle with it there.

`python3 dev.py wheel` runs it. pip needs an index, as for `.venv`; versions are those of constraints.txt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "misgnet", "export", "calibration", "runtime")
EXTRAS = "[verify]"
PACKAGES = {  # and the folder of each
    "misgnet": ".", "misgnet_calibration": "calibration", "misgnet_export": "export", "misgnet_runtime": "runtime",
}  # fmt: skip
PACKAGED = (".py", ".typed", ".j2")  # suffixes of files that belong in the wheel
LICENCES = ("LICENSE", "NOTICE")
# In the clean environment: prints the folder that each package would be imported from; imports none of them.
FOLDERS = """
import importlib.util, sys
for name in sys.argv[1:]:
    print(importlib.util.find_spec(name).submodule_search_locations[0])
print([name for name in ("torch", "onnx", "jinja2") if importlib.util.find_spec(name)])
"""


def main() -> int:
    """Runs all checks in a temporary folder; raises SystemExit if one fails."""
    with tempfile.TemporaryDirectory(prefix="misgnet-wheel-") as name:
        work = Path(name).resolve()
        wheel = build(work)
        check_files(wheel)
        python = install(work / "venv", wheel)
        check_imports(python, work)
        check_commands(python.parent, wheel, work)
    print("the wheel is complete: it was installed and run outside the checkout")
    return 0


def build(work: Path) -> Path:
    """Returns the wheel, built from a copy of the sources: leftovers of earlier builds cannot get into it."""
    copy = work / "source"
    copy.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work / "dist", copy, cwd=work)
    (wheel,) = (work / "dist").glob("*.whl")
    return wheel


def check_files(wheel: Path) -> None:
    """Checks that the wheel holds every module and data file of the packages, and the licence."""
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    homes = [(ROOT / home, name) for name, home in PACKAGES.items()]
    files = [(home, path) for home, name in homes for path in (home / name).rglob("*") if path.suffix in PACKAGED]
    missing = sorted({path.relative_to(home).as_posix() for home, path in files} - held)
    licences = [name for name in LICENCES if not any(path.endswith(f".dist-info/licenses/{name}") for path in held)]
    if missing or licences:
        raise SystemExit(f"{wheel.name} lacks {', '.join([*missing, *licences])}")


def install(folder: Path, wheel: Path) -> Path:
    """Returns the interpreter of a new environment that holds the wheel, with the runtime's dependencies only."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", ROOT / "constraints.txt", f"{wheel}{EXTRAS}", cwd=folder)
    return python


def check_imports(python: Path, work: Path) -> None:
    """Checks that all packages come from the wheel, and that none of the compiler's dependencies was installed."""
    *folders, extra = run(python, "-c", FOLDERS, *PACKAGES, cwd=work).splitlines()
    inside = python.parent.parent.resolve()
    strange = [folder for folder in folders if not Path(folder).resolve().is_relative_to(inside)]
    if strange or extra != "[]":
        raise SystemExit(f"imports come from {strange or 'the wheel'}, and it installed {extra}")


def check_commands(commands: Path, wheel: Path, work: Path) -> None:
    """Runs the installed commands: prints the version, and reads, verifies and runs a tiny bundle of the tests."""
    sys.path[:0] = [str(ROOT / "tests")]
    from support.bundles import images, make_bundle, write_image

    printed = run(commands / "misgnet-run", "--version", cwd=work).split()
    if printed != ["misgnet-run", wheel.name.split("-")[1]]:
        raise SystemExit(f"{wheel.name} is installed, and misgnet-run --version prints {' '.join(printed)}")
    bundle, mask = make_bundle(work / "bundle"), work / "mask.png"
    before, after = (write_image(work / f"{i}.png", image) for i, image in enumerate(images(70, 90)))
    for words in (["info", bundle], ["verify", bundle], ["predict", bundle, before, after, "-o", mask]):
        run(commands / "misgnet-run", *words, cwd=work)
    if not mask.is_file():
        raise SystemExit(f"misgnet-run predict ended with exit code 0 and wrote no {mask.name}")


def run(*words: object, cwd: Path) -> str:
    """Runs a command outside the checkout, shown first, and returns its stdout."""
    command = [str(word) for word in words]
    print("$", *(command[:2] if "-c" in command[1:2] else command), flush=True)
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | {"PYTHONSAFEPATH": "1"}
    ended = subprocess.run(command, cwd=cwd, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SystemExit(f"{ended.stdout}\n{command[0]} ended with exit code {ended.returncode}")
    return ended.stdout


if __name__ == "__main__":
    raise SystemExit(main())
