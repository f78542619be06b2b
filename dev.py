#!/usr/bin/env python3
"""One command per task, on a machine with nothing but Python and git: sets up .venv, then does the task.

python3 dev.py demo     build and run a bundle from the demo weights and generated tiles
python3 dev.py test     run the test suite (further arguments go to pytest)
python3 dev.py lint     ruff
python3 dev.py format   ruff format
python3 dev.py types    mypy, strict for the runtime
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
WEIGHTS = "examples/misgnet_synthetic_fp16.safetensors"


def demo(arguments: list[str]) -> None:
    """The main job: tiles from the generator, a bundle from the demo weights, its results and report."""
    folder = Path("demo")
    tiles, bundle = folder / "tiles", folder / "bundle"
    targets = ["--target", "cpu"]
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        targets += ["--target", "rtx-sm86,sm89"]
    run("misgnet", "synthesize", "-o", tiles, "--seed", "1", "--force")
    sets = ["--calib", tiles / "train", "--val", tiles / "val", "--eval", tiles / "test"]
    run("misgnet-export", "build", WEIGHTS, *sets, *targets, "-o", bundle, "--force", *arguments)


def test(arguments: list[str]) -> None:
    """Files of tests side by side, with a core for each process: two that both take all cores wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads
    run("pytest", "-n", min(4, os.cpu_count() or 1), "--dist", "loadfile", *arguments)


def lint(arguments: list[str]) -> None:
    run("ruff", "check", ".", *arguments)


def format_code(arguments: list[str]) -> None:
    run("ruff", "format", ".", *arguments)


def types(arguments: list[str]) -> None:
    run("mypy", *arguments)


TASKS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo, "test": test, "lint": lint, "format": format_code, "types": types,
}  # fmt: skip


def run(command: str, *arguments: object) -> None:
    """Run a command of the virtual environment, shown first; its exit code ends this script."""
    words = [str(word) for word in arguments]
    print("$", command, *words, flush=True)
    code = subprocess.run([VENV / "bin" / command, *words], cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code)


def set_up() -> None:
    """Create .venv and install everything, pinned; done again only when the project's needs change."""
    stamp = VENV / "installed"
    needs = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    digest = hashlib.sha256(needs + sys.version.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    print(
        f"setting up {VENV}: PyTorch, OpenVINO and TensorRT-RTX are large, the first time takes some minutes",
        flush=True,
    )
    venv.create(VENV, with_pip=True, clear=True)
    pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", "constraints.txt", "-e", ".[export,train,rtx,openvino,dev]"], cwd=ROOT, check=True)
    stamp.write_text(digest)


def main() -> None:
    if sys.version_info < (3, 11):
        found = platform.python_version()
        raise SystemExit(f"the compiler needs Python 3.11 or later, this is {found}; only the runtime runs on 3.10")
    task = TASKS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if task is None:
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)
    set_up()
    task(sys.argv[2:])


if __name__ == "__main__":
    main()
