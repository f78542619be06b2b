"""The power mode of a Jetson: which cores are on, and how far clocks may go."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from misgnet_runtime.machine import ROOT, read_text


def power_mode(root: Path = ROOT) -> str | None:
    """Name and number, as "MAXN (0)": what ``nvpmodel -q`` says, or else what it keeps on disk."""
    try:
        answer = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    if found := re.search(r"NV Power Mode: *(\S+)\s+(\d+)", answer):
        return f"{found[1]} ({found[2]})"
    kept = re.search(r"pmode:0*(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    return f"{_name(root, kept[1])} ({kept[1]})" if kept else None


def _name(root: Path, number: str) -> str:
    modes = read_text(root / "etc/nvpmodel.conf") or ""
    found = re.search(rf"^< *POWER_MODEL +ID={number} +NAME=(\S+)", modes, re.MULTILINE)
    return found[1] if found else "mode"
