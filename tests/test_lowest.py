"""Tests `dev.py lowest`, which installs the lowest versions that pyproject.toml allows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT))

import dev


def test_each_lower_bound_becomes_the_only_version() -> None:
    given = [
        "msgspec>=0.19", "Pillow>=13.0; python_version >= '3.11'", "torch>=2.9,<2.15", "tritonclient[grpc]>=2.40",
        "onnx-ir >= 1.0, < 2 ; sys_platform == 'linux'",
    ]  # fmt: skip
    assert dev.lowest_pins(given) == [
        "msgspec==0.19", "Pillow==13.0; python_version >= '3.11'", "torch==2.9", "tritonclient==2.40",
        "onnx-ir==1.0; sys_platform == 'linux'",
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["msgspec", "msgspec<1", "msgspec==0.19", "misgnet-export[geo]"])
def test_requirement_without_a_lower_bound_is_refused(given: str) -> None:
    with pytest.raises(SystemExit, match="no lower bound"):
        dev.lowest_pins([given])


def test_runtime_and_its_extras_have_lower_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """set_up_lowest takes them from pyproject.toml and leaves out the compiler's requirements."""
    made: dict[str, Any] = {}
    monkeypatch.setattr(dev, "create", lambda where, files, steps, why: made.update(files=files, steps=steps))
    monkeypatch.setattr(dev.sys, "version_info", (3, 12))
    dev.set_up_lowest()
    ((constraints, pins),), (step,) = made["files"].items(), made["steps"]
    names = {line.partition("==")[0] for line in pins.splitlines()}
    assert {"numpy", "onnxruntime", "Pillow", "rasterio", "shapely", "cryptography"} <= names
    assert not names & {"torch", "onnx", "jinja2"}
    assert step[:4] == ["-c", constraints, "-e", ".[geo,verify]"]
    assert {str(need).partition(">")[0] for need in step[4:]} == set(dev.TEST_TOOLS)
