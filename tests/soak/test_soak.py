"""Tests of the watcher with a short, reproducible soak test; and of the soak test with watchers that break a rule.

``MISGNET_SOAK_MINUTES=30 pytest tests/soak`` runs it for longer, like ``python tests/soak``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
if sys.platform != "linux":
    pytest.skip("it reads /proc", allow_module_level=True)

SOAK = Path(__file__).parent
MINUTES = os.environ.get("MISGNET_SOAK_MINUTES", "2")


def soak(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SOAK), "--seed", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_soak_processes_every_good_pair_once_and_reports_every_bad_one() -> None:
    found = soak("--minutes", MINUTES)
    assert found.returncode == 0 and "; 0 problems" in found.stdout, f"{found.stdout}\n{found.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "minutes", "patience", "words"),
    [
        ("once", "0.1", "12", "is good, but was done"),
        ("mask", "0.1", "30", "the mask of"),
        ("attempts", "0.25", "8", "is bad, but has not failed in the journal"),
    ],
)
def test_soak_finds_a_broken_rule(rule: str, minutes: str, patience: str, words: str) -> None:
    found = soak("--minutes", minutes, "--patience", patience, "--broken", rule)
    assert found.returncode == 1 and words in found.stdout, f"{found.stdout}\n{found.stderr[-3000:]}"
