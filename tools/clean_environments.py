"""Installs a wheel into clean environments outside the checkout, one for each extra, and runs bundles there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import dev  # noqa: E402
from misgnet_runtime.bundle.manifest import EngineEntry  # noqa: E402

PACKAGES = ("misgnet", "misgnet_calibration", "misgnet_export", "misgnet_runtime")
COMPILER = ("torch", "onnx", "jinja2")
# In a clean environment: prints the folder that each package would be imported from, and which others there are.
FOLDERS = """
import importlib.util, sys
names = sys.argv[1:]
for name in names[:4]:
    print(importlib.util.find_spec(name).submodule_search_locations[0])
print(" ".join(name for name in names[4:] if importlib.util.find_spec(name)))
"""
VERSION = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"


@dataclass(frozen=True)
class Clean:
    """One clean environment: what is installed there, and what is run."""

    extras: str
    smoke: Callable[[Path, Path], None]  # arguments: folder of the environment's programs, empty working folder
    python: str = "{}.{}".format(*sys.version_info[:2])
    others: tuple[str, ...] = ()  # requirements beside the wheel

    @property
    def name(self) -> str:
        return f"Python {self.python} {self.extras or 'without extras'}"


def check_environments(wheel: Path, work: Path) -> None:
    """Installs and runs the wheel in each environment; names those whose Python this machine lacks."""
    for number, clean in enumerate(ENVIRONMENTS):
        started, python = time.monotonic(), interpreter(clean.python)
        if python is None:
            print(f"SKIPPED: {clean.name}: this machine has no Python {clean.python} with venv", flush=True)
            continue
        folder = work / f"clean{number}"
        (folder / "work").mkdir(parents=True)
        installed = install(python, folder / "venv", wheel, clean)
        check_imports(installed, folder, with_compiler=clean.extras == "[export]")
        check_version(installed.parent, wheel, folder)
        clean.smoke(installed.parent, folder / "work")
        print(f"{clean.name}: passed in {time.monotonic() - started:.0f} s", flush=True)
        shutil.rmtree(folder)


def interpreter(version: str) -> Path | None:
    """Returns an interpreter of this version that can make environments: this one, one on PATH, or one of pyenv's."""
    for candidate in candidates(version):
        words = [candidate, "-c", VERSION]
        printed = subprocess.run(words, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if printed.stdout.strip() == version:
            return candidate
    return None


def candidates(version: str) -> Iterator[Path]:
    yield Path(sys.executable)
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python3"))


def install(python: Path, folder: Path, wheel: Path, clean: Clean) -> Path:
    """Returns the interpreter of a new environment that holds the wheel with the extras."""
    run(python, "-m", "venv", folder, cwd=folder.parent)
    constraints = folder / "constraints.txt"
    locked = tuple(map(int, clean.python.split("."))) >= (3, 11)  # the lock is for Python 3.11 and later
    constraints.write_text(dev.locked_pins() if locked else "", encoding="utf-8")
    installed = folder / "bin" / "python"
    pip = [installed, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints]
    run(*pip, *clean.others, f"{wheel}{clean.extras}", cwd=folder)
    return installed


def check_imports(python: Path, work: Path, *, with_compiler: bool) -> None:
    """Checks that all packages come from the wheel, and that only [export] brings the compiler's dependencies."""
    *folders, extra = run(python, "-c", FOLDERS, *PACKAGES, *COMPILER, cwd=work).splitlines()
    inside = python.parent.parent.resolve()
    strange = [folder for folder in folders if not Path(folder).resolve().is_relative_to(inside)]
    if strange or extra != (" ".join(COMPILER) if with_compiler else ""):
        raise SystemExit(f"imports come from {strange or 'the wheel'}, and it installed {extra or 'no compiler'}")


def check_version(programs: Path, wheel: Path, work: Path) -> None:
    """Checks the printed version, and completion by bash."""
    printed = run(programs / "misgnet-run", "--version", cwd=work).split()
    if printed[:2] != ["misgnet-run", wheel.name.split("-")[1]]:
        raise SystemExit(f"{wheel.name} is installed, and misgnet-run --version prints {' '.join(printed)}")
    asked = {"_MISGNET_RUN_COMPLETE": "complete_bash", "COMP_WORDS": "misgnet-run inf", "COMP_CWORD": "1"}
    completed = run(programs / "misgnet-run", cwd=work, **asked).split()
    if completed != ["info"]:
        raise SystemExit(f"bash completes `misgnet-run inf` to {completed}, not to info")


def run_images(programs: Path, work: Path) -> None:
    """Reads, verifies and runs a tiny bundle of the tests on two images."""
    from support.bundles import FLOAT, INT8

    use_bundle(programs, work, FLOAT, INT8)


def run_openvino(programs: Path, work: Path) -> None:
    """Runs a tiny bundle whose only engine is OpenVINO."""
    from msgspec.structs import replace

    from support.bundles import FLOAT

    use_bundle(programs, work, replace(FLOAT, name="openvino", kind="openvino"))


def use_bundle(programs: Path, work: Path, *engines: EngineEntry) -> None:
    from support.bundles import images, make_bundle, write_image

    bundle, mask = make_bundle(work / "bundle", engines=engines), work / "mask.png"
    before, after = (write_image(work / f"{i}.png", image) for i, image in enumerate(images(70, 90)))
    for words in (["info", bundle], ["verify", bundle], ["predict", bundle, before, after, "-o", mask]):
        run(programs / "misgnet-run", *words, cwd=work)
    exists(mask)


def run_scene(programs: Path, work: Path) -> None:
    """Runs the README's first command and its lines of Python, beside the folders of examples that they name."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("demo_bundle", "demo_scene"):
        shutil.copytree(ROOT / "examples" / name, work / "examples" / name)
    shell = next(block for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if "misgnet-run predict" in block)
    command = shell[shell.index("misgnet-run predict") :]
    name, *words = shlex.split(command.replace("\\\n", " "))
    run(programs / name, *words, cwd=work)
    (python,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    print(run(programs / "python", "-c", python, cwd=work), end="")
    exists(work / "change.tif", work / "change.html", work / "change.gpkg")


def run_build(programs: Path, work: Path) -> None:
    """Builds a bundle from a tiny ONNX file on generated tiles, and runs it."""
    from support.foreign_networks import raw_network

    network, tiles, bundle = work / "network.onnx", work / "tiles", work / "built"
    network.write_bytes(raw_network("uint8", 64).SerializeToString())
    drawn = ["--train", 16, "--val", 2, "--test", 2, "--size", 64]
    run(programs / "misgnet", "synthesize", "-o", tiles, *drawn, cwd=work)
    sets = ["--calib", tiles / "train", "--eval", tiles / "test"]
    quick = ["--target", "cpu", "--observer", "max", "--repair", "never", "--control-minutes", 0, "--max-f1-drop", 5]
    described = ["--model-output", "probability1", "--threshold", "0.1", "--calib-tiles", 16]
    run(programs / "misgnet-export", "build", network, *sets, *described, *quick, "-o", bundle, cwd=work)
    run(programs / "misgnet-run", "verify", bundle, cwd=work)


def exists(*outputs: Path) -> None:
    lacking = [path.name for path in outputs if not path.is_file()]
    if lacking:
        raise SystemExit(f"misgnet-run predict ended with exit code 0 and wrote no {', '.join(lacking)}")


def run(*words: object, cwd: Path, **variables: str) -> str:
    """Runs a command outside the checkout, shown first, with more environment variables, and returns its stdout."""
    command = [str(word) for word in words]
    print("$", *(command[:2] if "-c" in command[1:2] else command), flush=True)
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | {"PYTHONSAFEPATH": "1"}
    environment |= variables
    ended = subprocess.run(command, cwd=cwd, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SystemExit(f"{ended.stdout}\n{command[0]} ended with exit code {ended.returncode}")
    return ended.stdout


ENVIRONMENTS = (
    Clean("", run_images, python="3.10"),
    Clean("[verify]", run_images),
    Clean("", run_images, python="3.13"),
    Clean("[geo]", run_scene),
    Clean("[openvino]", run_openvino),
    Clean("[export]", run_build, others=(dev.TORCH,)),
)
