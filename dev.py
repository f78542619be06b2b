#!/usr/bin/env python3
"""Sets up .venv and runs a development task; requires only Python and git.

python3 dev.py demo     build and run a bundle from the example weights and generated tiles
python3 dev.py test     run the tests of the default tier: all but those marked slow; --full runs all (further
                        arguments go to pytest)
python3 dev.py lowest   run the runtime's tests in .venv-lowest with the lowest versions that pyproject.toml allows and
                        the Python that runs this script (3.10 to 3.12)
python3 dev.py lint     run ruff (further arguments go to it), import-linter for the layers in pyproject.toml, and
                        codespell and tools/check_phrases.py for words and phrases that this repository does not use
python3 dev.py format   run ruff format (further arguments go to it)
python3 dev.py types    run mypy, which is strict for the runtime (further arguments go to it)
python3 dev.py docs     build the documentation into site/; warnings are errors (further arguments go to mkdocs build)
python3 dev.py examples draw the demo scene, build the demo bundle, and run the notebooks, all in examples/ (minutes)
python3 dev.py wheel    build the wheel, install it in a clean environment outside the checkout, and run a bundle there
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
LOWEST = ROOT / ".venv-lowest"
LOWEST_EXTRAS = ("geo", "verify")  # extras of the runtime
TEST_TOOLS = ("pytest", "pytest-xdist", "hypothesis", "scikit-learn")
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w, -]+\])?\s*>=\s*(?P<lowest>[\w.]+)[^;]*(?P<marker>;.*)?")
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


TASKS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo, "test": test, "lowest": lowest, "lint": lint, "format": format_code, "types": types,
    "docs": docs, "examples": examples, "wheel": wheel,
}  # fmt: skip


def run(command: str, *arguments: object, environment: Path = VENV) -> None:
    """Prints and runs a command of a virtual environment; exits with its code if it fails."""
    texts = [str(argument) for argument in arguments]
    print("$", command, *texts, flush=True)
    code = subprocess.run([environment / "bin" / command, *texts], cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code)


def set_up() -> None:
    """Creates .venv and installs all pinned requirements, unless they have not changed since the last time."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    install(VENV, pins, [".[export,train,rtx,openvino,dev]"], "PyTorch, OpenVINO and TensorRT-RTX are large")


def set_up_lowest() -> None:
    """Creates .venv-lowest with the runtime, its extras at their lower bounds, and the tools of the tests."""
    if sys.version_info >= (3, 13):
        raise SystemExit("numpy 1.26, the lowest allowed version, has no wheel for Python 3.13: use 3.10, 3.11 or 3.12")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    bounded = [*project["dependencies"], *(one for extra in LOWEST_EXTRAS for one in extras[extra])]
    pins = "".join(f"{pin}\n" for pin in lowest_pins(bounded))
    tools = [one for one in extras["dev"] if re.split(r"[^\w.-]", one)[0] in TEST_TOOLS]
    install(LOWEST, pins, [f".[{','.join(LOWEST_EXTRAS)}]", *tools], "the lowest versions allowed")


def lowest_pins(requirements: Iterable[str]) -> list[str]:
    """Returns constraints for pip that allow only the lower bound of each requirement; markers are kept."""
    pins = []
    for requirement in requirements:
        found = REQUIREMENT.fullmatch(requirement)
        if found is None:
            raise SystemExit(f"pyproject.toml has no lower bound for '{requirement}': write NAME>=VERSION")
        pins.append(f"{found['name']}=={found['lowest']}{found['marker'] or ''}")
    return pins


def install(environment: Path, pins: str, needs: list[str], why: str) -> None:
    """Creates a virtual environment with ``needs``, the first of which is installed as editable.

    Args:
        environment: Folder of the environment; an environment with the same requirements is kept.
        pins: Constraints for pip.
        needs: Requirements.
        why: Reason why the installation takes long, for the message.
    """
    stamp = environment / "installed"
    wanted = (ROOT / "pyproject.toml").read_bytes() + pins.encode() + sys.version.encode()
    digest = hashlib.sha256(wanted).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return
    print(f"setting up {environment} ({why}); the first time takes some minutes", flush=True)
    venv.create(environment, with_pip=True, clear=True)
    constraints = environment / "constraints.txt"
    constraints.write_text(pins, encoding="utf-8")
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", constraints, "-e", *needs], cwd=ROOT, check=True)
    stamp.write_text(digest, encoding="utf-8")


def main() -> None:
    task = TASKS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if task is None:
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)
    if sys.version_info < (3, 11) and task is not lowest:
        found = platform.python_version()
        raise SystemExit(
            f"the compiler requires Python 3.11 or later, this is {found}; only `dev.py lowest` runs on 3.10"
        )
    (set_up_lowest if task is lowest else set_up)()
    task(sys.argv[2:])


if __name__ == "__main__":
    main()
