"""Defines folders and files of the repository that tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
DATA = TESTS / "data"
DEMO_WEIGHTS = ROOT / "examples" / "misgnet_synthetic_fp16.safetensors"
