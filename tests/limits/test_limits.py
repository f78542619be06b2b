"""Tests that reading hostile files takes no more processor time and memory than stated in SECURITY.md.

``MISGNET_ALL_FAMILIES=1 pytest tests/limits`` also measures the slow families; ``python tests/limits`` prints all
measurements.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from misgnet_runtime.limits import READERS, markdown, reader
from support.paths import ROOT

LIMITS = Path(__file__).parent
sys.path.append(str(LIMITS))
NEEDS = {
    "checkpoint": "torch",
    "safetensors": "torch",
    "onnx": "onnx",
    "area": "rasterio",
    "table": "rasterio",
    "features": "rasterio",
    "journal": "rasterio",
}
SLOWER = 4  # factor for machines slower than the one on which the seconds were measured
ARENA = 160  # MiB of address space that the C library may reserve without using it

from families import FAMILIES

FAST = [name for name, family in FAMILIES.items() if os.environ.get("MISGNET_ALL_FAMILIES") or not family.slow]
NAMES = sorted({FAMILIES[name].reader for name in FAST})
SLOW = {"area", "checkpoint", "features", "image", "onnx", "safetensors", "table"}  # seconds to minutes each


def _readings(name: str) -> list[dict[str, Any]]:
    families = [family for family in FAST if FAMILIES[family].reader == name]
    command = [sys.executable, str(LIMITS), "--json", "--exactly", *families]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]
)
def test_hostile_files_stay_within_the_stated_limits(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    row, readings = reader(name), _readings(name)
    assert {reading["family"] for reading in readings} == {f for f in FAST if FAMILIES[f].reader == name}
    for found in readings:
        assert not found["end"].startswith("broken"), found
        assert found["seconds"] <= SLOWER * row.seconds, found
        assert found["resident"] <= row.mebibytes, found
        assert found["virtual"] <= row.mebibytes + ARENA, found
        if found["over"]:
            assert re.match("(Input|Usage)Error", found["end"]), found


def test_security_md_has_the_current_table_of_limits() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert markdown() in text, "SECURITY.md is out of date; insert the output of python tests/limits --table"


def test_every_reader_has_limits_with_reasons() -> None:
    assert len({row.name for row in READERS}) == len(READERS)
    for row in READERS:
        assert row.seconds > 0 and row.mebibytes > 0 and row.limits
        assert all(limit.value > 0 and limit.reason for limit in row.limits), row.name
    assert {family.reader for family in FAMILIES.values()} <= {row.name for row in READERS}
