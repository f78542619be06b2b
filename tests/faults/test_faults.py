"""Tests that results are either old or new after a full disk, a disk error, a short write or kill -9.

By default, faults are injected at some calls of each operation; with ``MISGNET_FAULTS_ALL=1``, each kind is injected at
every call, as in ``python tests/faults``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pytest.importorskip("pyogrio", reason="scenes need the [geo] extra")
if sys.platform != "linux" or shutil.which("cc") is None:
    pytest.skip("fault injection requires Linux and a C compiler", allow_module_level=True)

FAULTS = Path(__file__).parent
NEEDS = {"build": ("onnx", "torch"), "sign": ("model_signing",), "accept": ("cryptography",), "scene": ("pystac",)}
POINTS = {
    "build": 6, "image": 8, "folders": 8, "scene": 16, "series": 10, "batch": 16, "watch": 8, "sign": 8,
    "compile": 8, "accept": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    "operation", [name if name == "image" else pytest.param(name, marks=pytest.mark.slow) for name in POINTS]
)
def test_results_are_old_or_new_after_any_fault(operation: str) -> None:
    for module in NEEDS.get(operation, ()):
        pytest.importorskip(module)
    few = [] if os.environ.get("MISGNET_FAULTS_ALL") else ["--points", str(POINTS[operation])]
    found = subprocess.run([sys.executable, str(FAULTS), operation, *few], capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr[-3000:]}"
    assert "; 0 problems" in found.stdout and "reported" in found.stdout and "killed" in found.stdout
