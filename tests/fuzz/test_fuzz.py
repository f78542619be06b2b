"""Tests that readers keep their promises for damaged files, with a few fixed files per reader.

``python tests/fuzz`` reads more files. ``MISGNET_FUZZ_MINUTES=60 pytest tests/fuzz/test_fuzz.py`` fuzzes for an hour,
with different files each time.
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
    "onnx": ("observations", "onnx"),
    "torch": ("checkpoint", "safetensors", "onnx"),
    "rasterio": ("geotiff", "geotiff-families", "area"),
    "cryptography": ("signature", "statement", "signed-manifest", "accepted", "key"),
}
TARGETS = [
    "manifest", "signature", "statement", "signed-manifest", "accepted", "key", "checkpoint", "safetensors", "onnx",
    "images",
    "geotiff", "area", "scene-journal", "folder-record", "watch-journal", "batch-record", "dataset-record", "features",
    "golden", "evaluation", "observations", "plans", "tuning", "table", "manifest-names", "geotiff-families",
    "table-families", "stac-item",
]  # fmt: skip
MINUTES = os.environ.get("MISGNET_FUZZ_MINUTES")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_break_no_promise(target: str, tmp_path: Path) -> None:
    """No code is run, no outside file is opened, time and memory are limited, and only the project's errors occur."""
    for module, targets in NEEDS.items():
        if target in targets:
            pytest.importorskip(module)
    amount = ["--minutes", str(float(MINUTES) / len(TARGETS))] if MINUTES else ["--examples", "40"]
    command = [sys.executable, str(FUZZ), target, *amount, "--keep", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr[-3000:]}"
    kept = len(list((FUZZ / "found" / target).glob("*")))
    assert f"{target}: " in found.stdout and int(found.stdout.split(f"{target}: ")[1].split()[0]) >= 20 + kept


@pytest.mark.parametrize("target", sorted(folder.name for folder in (FUZZ / "found").iterdir()))
def test_files_found_by_fuzzing_break_no_promise_now(target: str, tmp_path: Path) -> None:
    for module, targets in NEEDS.items():
        if target in targets:
            pytest.importorskip(module)
    command = [sys.executable, str(FUZZ), target, "--keep", str(tmp_path), "--replay"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr[-3000:]}"
    assert f"{target}: {len(list((FUZZ / 'found' / target).iterdir()))} files" in found.stdout


def test_fuzzer_has_all_targets() -> None:
    wide = {**os.environ, "COLUMNS": "2000"}  # no name is broken at its hyphen
    printed = subprocess.run([sys.executable, str(FUZZ), "-h"], capture_output=True, text=True, check=True, env=wide)
    assert set(TARGETS) <= {word.strip(",") for word in printed.stdout.split()}


PROMISES = {
    "opened outside": ("open('/etc/hostname').read()", "opened /etc/hostname"),
    "ran code": ("exec('1')", "exec "),
    "started a process": ("__import__('os').system('true')", "os.system"),
    "never ended": ("while True: pass", "of processor time"),
    "took much memory": ("bytearray(1 << 30)", "MemoryError"),
    "raised another error": ("[][1]", "IndexError"),
}  # fmt: skip


@pytest.mark.parametrize("promise", PROMISES)
def test_fuzzer_detects_a_broken_promise(promise: str, tmp_path: Path) -> None:
    """Replaces a reader with one that breaks the promise."""
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
