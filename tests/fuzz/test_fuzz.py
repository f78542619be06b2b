"""Tests that all readers of external files keep their promises for a few reproducible damaged files.

``MISGNET_FUZZ_MINUTES=60 pytest tests/fuzz`` reads random files for an hour, like ``python tests/fuzz``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="needs the [dev] extra")

FUZZ = Path(__file__).parent
NEEDS = {
    "onnx": ("observations",),
    "torch": ("checkpoint", "safetensors"),
    "rasterio": ("geotiff", "geotiff-families"),
    "cryptography": ("signature", "statement", "signed-manifest", "accepted", "key"),
}
TARGETS = [
    "manifest", "signature", "statement", "signed-manifest", "accepted", "key", "checkpoint", "safetensors", "images",
    "geotiff", "scene-journal", "folder-record", "watch-journal", "batch-record", "dataset-record", "features",
    "golden", "evaluation", "observations", "plans", "tuning", "table", "manifest-names", "geotiff-families",
    "table-families",
]  # fmt: skip
MINUTES = os.environ.get("MISGNET_FUZZ_MINUTES")


@pytest.mark.parametrize("target", TARGETS)
def test_readers_keep_their_promises_for_damaged_files(target: str, tmp_path: Path) -> None:
    """No code is run, no other file is opened, time and memory are limited, and errors are the project's own."""
    for module, targets in NEEDS.items():
        if target in targets:
            pytest.importorskip(module)
    much = ["--minutes", str(float(MINUTES) / len(TARGETS))] if MINUTES else ["--examples", "40"]
    command = [sys.executable, str(FUZZ), target, *much, "--keep", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr[-3000:]}"
    kept = len(list((FUZZ / "found" / target).glob("*")))
    assert f"{target}: " in found.stdout and int(found.stdout.split(f"{target}: ")[1].split()[0]) >= 20 + kept


def test_the_command_has_all_targets() -> None:
    wide = {**os.environ, "COLUMNS": "2000"}  # no line breaks inside names
    command = [sys.executable, str(FUZZ), "-h"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=wide).stdout
    assert set(TARGETS) <= {word.strip(",.") for word in output.split()}


PROMISES = {
    "opened outside": ("open('/etc/hostname').read()", "opened /etc/hostname"),
    "ran code": ("exec('1')", "exec "),
    "started a process": ("__import__('os').system('true')", "os.system"),
    "took forever": ("while True: pass", "of processor time"),
    "took much memory": ("bytearray(1 << 30)", "MemoryError"),
    "raised another error": ("[][1]", "IndexError"),
}  # fmt: skip


@pytest.mark.parametrize("promise", PROMISES)
def test_a_broken_promise_is_found(promise: str, tmp_path: Path) -> None:
    """Fuzzes a reader that breaks the promise."""
    code, words = PROMISES[promise]
    body = code if code.startswith("while") else f"_ = {code}"
    program = f"""
import importlib.util, sys
sys.argv = ["fuzz", "tuning", "--examples", "2", "--keep", {str(tmp_path)!r}]
sys.path.insert(0, {str(FUZZ)!r})
spec = importlib.util.spec_from_file_location("fuzz_main", {str(FUZZ / "__main__.py")!r})
main = importlib.util.module_from_spec(spec)
spec.loader.exec_module(main)
import targets
good = []
def read(data):
    if not good:
        return good.append(data)
    {body}
main.TARGETS["tuning"] = targets.Target(lambda folder: (read, [b"x"]), targets.damage.damaged_bytes, seconds=0.5)
sys.exit(main.main())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 1 and words in found.stdout, f"{found.stdout}\n{found.stderr[-2000:]}"
    assert list((tmp_path / "tuning").iterdir())
