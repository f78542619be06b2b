#!/usr/bin/env python3
"""Sets up .venv and runs a development task; requires only Python and git.

python3 dev.py demo     build and run a bundle from the example weights and generated tiles
python3 dev.py test     run the tests of the default tier: all but those marked slow; --full runs all (further
                        arguments go to pytest)
python3 dev.py runtime  run the runtime's tests of the default tier in .venv-runtime, without PyTorch and the compiler
                        (further arguments go to pytest)
python3 dev.py lowest   run the runtime's tests in .venv-lowest with the lowest versions that pyproject.toml allows and
                        the Python that runs this script (3.10 to 3.12)
python3 dev.py lint     run ruff (further arguments go to it), import-linter for the layers in pyproject.toml, codespell
                        and tools/check_phrases.py for words and phrases that this repository does not use, and
                        tools/check_config.py for shell scripts, workflows and CITATION.cff
python3 dev.py format   run ruff format (further arguments go to it)
python3 dev.py types    run mypy, which is strict for the runtime (further arguments go to it)
python3 dev.py docs     build the documentation into site/; warnings are errors (further arguments go to mkdocs build)
python3 dev.py examples draw the demo scene, build the demo bundle, and run the notebooks, all in examples/ (minutes)
python3 dev.py wheel    build and check sdist and wheel; install the wheel in clean environments outside the checkout
                        and run bundles there
python3 dev.py lock     update requirements.lock after a change of pyproject.toml; versions in it stay unless
                        --upgrade or --upgrade-package NAME is given (further arguments go to uv pip compile)
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
RUNTIME = ROOT / ".venv-runtime"
LOWEST = ROOT / ".venv-lowest"
EXTRAS = ("export", "train", "rtx", "openvino", "dev")  # of .venv
RUNTIME_EXTRAS = ("geo", "verify")  # of the environments that hold the runtime only
TEST_TOOLS = ("pytest", "pytest-xdist", "hypothesis", "scikit-learn")
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w, -]+\])?\s*>=\s*(?P<lowest>[\w.]+)[^;]*(?P<marker>;.*)?")
# The versions and hashes of everything in .venv, for all systems and Python 3.11 and later.
LOCK = ROOT / "requirements.lock"
ENTRY = re.compile(r"^(?P<pin>(?P<name>[\w.-]+)==[^\\\n]+?) \\\n(?: +--hash=\S+(?: \\)?\n)+", re.MULTILINE)
# Not in the lock: the builds for CPUs and for CUDA have the same version but other files and requirements, and an index
# may have either. pip takes the one that its configuration finds.
TORCH = "torch==2.13.0"
TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "networkx", "setuptools>=77.0.3", "sympy>=1.13.3", "typing-extensions")
UV = "uv==0.13.8"  # writes the lock
BIN = "Scripts" if os.name == "nt" else "bin"
WEIGHTS = "examples/misgnet_synthetic_fp16.safetensors"


def demo(arguments: list[str]) -> None:
    """Generates tiles and builds a bundle with its report from the example weights."""
    folder = Path("demo")
    tiles, bundle = folder / "tiles", folder / "bundle"
    targets = ["--target", "auto"]
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        targets += ["--target", "rtx-sm86,sm89"]
    run("misgnet", "synthesize", "-o", tiles, "--seed", "1", "--force")
    sets = ["--calib", tiles / "train", "--val", tiles / "val", "--eval", tiles / "test"]
    run("misgnet-export", "build", WEIGHTS, *sets, *targets, "-o", bundle, "--force", *arguments)


def test(arguments: list[str]) -> None:
    """Runs the default tier, or all tests with ``--full``."""
    full = "--full" in arguments
    tier = [] if full else ["-m", "not slow"]
    run_tests(VENV, [*tier, *(argument for argument in arguments if argument != "--full")])


def runtime(arguments: list[str]) -> None:
    """Runs the runtime's default tier where PyTorch and the compiler are not installed."""
    run_tests(RUNTIME, ["-m", "not slow", *(arguments or ["tests/runtime"])])


def lowest(arguments: list[str]) -> None:
    """Runs the tests with the lowest versions; PyTorch and onnx are missing, so tests/conftest.py skips other tests."""
    run_tests(LOWEST, arguments)


def run_tests(environment: Path, arguments: list[str]) -> None:
    """Runs pytest on several files in parallel, with one core per process.

    Processes that each use all cores would slow each other down.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of PyTorch
    workers = ("-n", min(4, os.cpu_count() or 1), "--dist", "loadfile", "--no-loadscope-reorder")
    run("pytest", *workers, *arguments, environment=environment)


def lint(arguments: list[str]) -> None:
    run("ruff", "check", ".", *arguments)
    run("lint-imports")
    run("codespell", "--dictionary", "-", "--dictionary", "tools/words.txt")
    run("python", "tools/check_phrases.py")
    run("python", "tools/check_config.py")


def format_code(arguments: list[str]) -> None:
    run("ruff", "format", ".", *arguments)


def types(arguments: list[str]) -> None:
    run("mypy", *arguments)


def docs(arguments: list[str]) -> None:
    """Builds the site; warnings are errors."""
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")  # suppresses an advertisement that Material prints at each build
    run("mkdocs", "build", "--strict", *arguments)


def examples(arguments: list[str]) -> None:
    """Makes the files of examples/ again that are generated."""
    run("python", "examples/make_demo.py")
    run("python", "tools/run_notebooks.py", *arguments)


def wheel(arguments: list[str]) -> None:
    run("python", "tools/check_wheel.py", *arguments)


def lock(arguments: list[str]) -> None:
    """Writes the lock by uv, from PyPI or the index that uv's environment variables name."""
    with tempfile.TemporaryDirectory(prefix="misgnet-lock-") as folder:
        venv.create(folder, with_pip=True)
        pip_install(Path(folder), UV)
        without_torch = Path(folder, "without-torch.txt")
        without_torch.write_text('torch; python_version < "0"\n', encoding="utf-8")
        options = [
            "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate",
            "--custom-compile-command", "python3 dev.py lock", "--override", without_torch, "--output-file", LOCK.name,
        ]  # fmt: skip
        extras = [word for extra in EXTRAS for word in ("--extra", extra)]
        uv = [Path(folder) / BIN / "uv", "pip", "compile", "pyproject.toml", "-", *extras, *options, *arguments]
        subprocess.run(uv, cwd=ROOT, input="\n".join(TORCH_NEEDS), text=True, check=True)


TASKS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo, "test": test, "runtime": runtime, "lowest": lowest, "lint": lint, "format": format_code,
    "types": types, "docs": docs, "examples": examples, "wheel": wheel, "lock": lock,
}  # fmt: skip


def run(command: str, *arguments: object, environment: Path = VENV) -> None:
    """Prints and runs a command of a virtual environment; exits with its code if it fails."""
    texts = [str(argument) for argument in arguments]
    print("$", command, *texts, flush=True)
    code = subprocess.run([environment / BIN / command, *texts], cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code)


def set_up() -> None:
    """Creates .venv from the lock, unless it has not changed since the last time."""
    locked = LOCK.read_text(encoding="utf-8")
    (backend,) = (entry[0] for entry in ENTRY.finditer(locked) if entry["name"] == "setuptools")
    lock_file, backend_file = VENV / LOCK.name, VENV / "setuptools.lock"
    exactly = ("--no-deps", "--require-hashes", "--no-build-isolation")  # setuptools builds what has no wheel
    create(
        VENV,
        {lock_file: locked, backend_file: backend},
        [
            [*exactly, "-r", backend_file],
            [*exactly, "-r", lock_file],
            [TORCH],
            ["--no-deps", "--no-build-isolation", "-e", "."],
        ],
        "PyTorch, OpenVINO and TensorRT-RTX are large",
    )


def set_up_runtime() -> None:
    """Creates .venv-runtime with the runtime, its extras and the tools of the tests at the versions of the lock."""
    pins = locked_pins() if sys.version_info >= (3, 11) else ""  # the lock is for Python 3.11 and later
    install_runtime(RUNTIME, pins, "the runtime without the compiler")


def set_up_lowest() -> None:
    """Creates .venv-lowest with the runtime, its extras at their lower bounds, and the tools of the tests."""
    if sys.version_info >= (3, 13):
        raise SystemExit("numpy 1.26, the lowest allowed version, has no wheel for Python 3.13: use 3.10, 3.11 or 3.12")
    found = project()
    extras = found["optional-dependencies"]
    bounded = [*found["dependencies"], *(one for extra in RUNTIME_EXTRAS for one in extras[extra])]
    pins = "".join(f"{pin}\n" for pin in lowest_pins(bounded))
    install_runtime(LOWEST, pins, "the lowest versions allowed")


SET_UP: dict[Callable[[list[str]], None], Callable[[], None] | None] = {
    runtime: set_up_runtime, lowest: set_up_lowest, lock: None,
}  # fmt: skip


def project() -> dict[str, Any]:
    """Returns the table [project] of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def locked_pins() -> str:
    """Returns the versions of the lock, with markers and without hashes, as constraints for pip."""
    return "".join(f"{entry['pin']}\n" for entry in ENTRY.finditer(LOCK.read_text(encoding="utf-8")))


def lowest_pins(requirements: Iterable[str]) -> list[str]:
    """Returns constraints for pip that allow only the lower bound of each requirement; markers are kept."""
    pins = []
    for requirement in requirements:
        found = REQUIREMENT.fullmatch(requirement)
        if found is None:
            raise SystemExit(f"pyproject.toml has no lower bound for '{requirement}': write NAME>=VERSION")
        pins.append(f"{found['name']}=={found['lowest']}{found['marker'] or ''}")
    return pins


def install_runtime(environment: Path, pins: str, why: str) -> None:
    """Creates an environment with the runtime, its extras and the tools of the tests, within constraints for pip."""
    tools = [one for one in project()["optional-dependencies"]["dev"] if re.split(r"[^\w.-]", one)[0] in TEST_TOOLS]
    constraints = environment / "constraints.txt"
    needs = ["-c", constraints, "-e", f".[{','.join(RUNTIME_EXTRAS)}]", *tools]
    create(environment, {constraints: pins}, [needs], why)


def create(environment: Path, files: dict[Path, str], steps: list[list[object]], why: str) -> None:
    """Creates a virtual environment, unless it was made from the same files, project and Python.

    Args:
        environment: Folder of the environment.
        files: Requirements and constraints that are written into it.
        steps: Arguments of one `pip install` each.
        why: Reason why the installation takes long, for the message.
    """
    stamp = environment / "installed"
    wanted = (ROOT / "pyproject.toml").read_text(encoding="utf-8"), sys.version, list(files.values()), steps
    digest = hashlib.sha256(repr(wanted).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return
    print(f"setting up {environment} ({why}); the first time takes some minutes", flush=True)
    venv.create(environment, with_pip=True, clear=True)
    for file, text in files.items():
        file.write_text(text, encoding="utf-8")
    for step in steps:
        pip_install(environment, *step)
    stamp.write_text(digest, encoding="utf-8")


def pip_install(environment: Path, *arguments: object) -> None:
    """Runs `pip install` of an environment; its index is that of pip's configuration."""
    pip = [environment / BIN / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *map(str, arguments)], cwd=ROOT, check=True)


def main() -> None:
    task = TASKS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if task is None:
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)
    if sys.version_info < (3, 11) and task not in (runtime, lowest):
        found = platform.python_version()
        raise SystemExit(
            f"the compiler requires Python 3.11 or later, this is {found}; `dev.py runtime` and `lowest` run on 3.10"
        )
    prepare = SET_UP.get(task, set_up)
    if prepare:
        prepare()
    task(sys.argv[2:])


if __name__ == "__main__":
    main()
