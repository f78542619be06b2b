#!/usr/bin/env python3
"""Builds sdist and wheel, checks what they hold, and runs bundles with the wheel in clean environments.

`python3 dev.py wheel` runs it. pip needs an index, as for `.venv`; versions are those of requirements.lock.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from clean_environments import check_environments, run

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {  # and the folder of each
    "misgnet": ".", "misgnet_calibration": "calibration", "misgnet_export": "export", "misgnet_runtime": "runtime",
}  # fmt: skip
LICENCES = ("LICENSE", "NOTICE")
NOT_IN_SDIST = ("examples/demo_bundle/", "examples/misgnet_synthetic_fp16.safetensors")
SDIST = (
    "benchmarks/", "calibration/", "docs/", "examples/", "export/", "misgnet/", "runtime/", "tests/", "tools/",
    "dev.py", "requirements.lock",
)  # fmt: skip
LARGEST_SDIST = 8e6  # bytes; 2.3e6 in November 2026


def main() -> int:
    """Runs all checks in a temporary folder; raises SystemExit if one fails."""
    with tempfile.TemporaryDirectory(prefix="misgnet-wheel-") as name:
        work = Path(name).resolve()
        sdist, wheel = build(work)
        check_sdist(sdist)
        check_wheel(wheel)
        run(command("check-wheel-contents"), "--config", ROOT / "pyproject.toml", wheel, cwd=work)
        run(command("twine"), "check", "--strict", sdist, wheel, cwd=work)
        check_environments(wheel, work)
    print("the wheel is complete: it was installed and run outside the checkout")
    return 0


def command(name: str) -> Path:
    """Returns a program of the environment that runs this script."""
    return Path(sys.executable).with_name(name)


def files() -> set[str]:
    """Returns the files of the checkout that Git tracks or would add."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {path for path in listed if (ROOT / path).is_file()}


def build(work: Path) -> tuple[Path, Path]:
    """Returns the sdist of a copy of the sources, without leftovers of earlier builds, and the wheel of that sdist."""
    copy = work / "source"
    for path in files():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
    made = work / "dist"
    run(sys.executable, "-m", "build", "--quiet", "--no-isolation", "--outdir", made, copy, cwd=work)
    (sdist,), (wheel,) = made.glob("*.tar.gz"), made.glob("*.whl")
    return sdist, wheel


def check_sdist(sdist: Path) -> None:
    """Checks that the sdist holds what builds and tests the runtime, but no demo weights and no demo bundle."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path for path in files() if path.startswith(SDIST) and not path.startswith(NOT_IN_SDIST)}
    large = {path for path in held if path.startswith(NOT_IN_SDIST)}
    compare(sdist, (wanted & held) | large, wanted)
    if sdist.stat().st_size > LARGEST_SDIST:
        raise SystemExit(f"{sdist.name} has {sdist.stat().st_size / 1e6:.1f} MB: exclude large files in MANIFEST.in")


def check_wheel(wheel: Path) -> None:
    """Checks that the wheel holds every file of the packages, data files included, the licence, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {
        path.removeprefix(f"{home}/")
        for name, home in PACKAGES.items()
        for path in files()
        if path.startswith(f"{name}/" if home == "." else f"{home}/{name}/")
    }
    compare(wheel, {path for path in held if ".dist-info/" not in path}, wanted)
    licences = [name for name in LICENCES if not any(path.endswith(f".dist-info/licenses/{name}") for path in held)]
    if licences:
        raise SystemExit(f"{wheel.name} lacks {', '.join(licences)}")


def compare(archive: Path, held: set[str], wanted: set[str]) -> None:
    """Raises SystemExit if an archive lacks files or has others."""
    lacking, strange = sorted(wanted - held), sorted(held - wanted)
    if lacking or strange:
        raise SystemExit(f"{archive.name} lacks {', '.join(lacking) or 'nothing'}; unexpected: {strange or 'nothing'}")


if __name__ == "__main__":
    raise SystemExit(main())
