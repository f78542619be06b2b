"""A full disk, an error of the disk, a write that takes half, kill -9: the old results or the new ones, and no mixture.

Some calls of each operation here; ``MISGNET_FAULTS_ALL=1`` tries each kind at every call, as ``python tests/faults``.
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
    pytest.skip("faults are injected by a library that a C compiler makes, on Linux", allow_module_level=True)

FAULTS = Path(__file__).parent
NEEDS = {"build": ("onnx", "torch"), "sign": ("model_signing",), "accept": ("cryptography",)}
POINTS = {
    "build": 6, "image": 8, "folders": 8, "scene": 16, "series": 10, "batch": 16, "watch": 8, "sign": 8,
    "compile": 8, "accept": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    "operation", [name if name == "image" else pytest.param(name, marks=pytest.mark.slow) for name in POINTS]
)
def test_old_or_new(operation: str) -> None:
    for module in NEEDS.get(operation, ()):
        pytest.importorskip(module)
    few = [] if os.environ.get("MISGNET_FAULTS_ALL") else ["--points", str(POINTS[operation])]
    found = subprocess.run([sys.executable, str(FAULTS), operation, *few], capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr[-3000:]}"
    assert "; 0 problems" in found.stdout and "told" in found.stdout and "killed" in found.stdout
