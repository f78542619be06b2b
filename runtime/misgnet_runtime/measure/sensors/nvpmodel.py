"""Reads the power mode of a Jetson, which limits its cores and clocks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from misgnet_runtime.machine import ROOT, read_text


def power_mode(root: Path = ROOT) -> str | None:
    """Returns the power mode as "MAXN (0)", from ``nvpmodel -q`` or its status file; None if there is none."""
    try:
        output = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        output = ""
    if found := re.search(r"NV Power Mode: *(\S+)\s+(\d+)", output):
        return f"{found[1]} ({found[2]})"
    kept = re.search(r"pmode:0*(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    return f"{_name(root, kept[1])} ({kept[1]})" if kept else None


def _name(root: Path, number: str) -> str:
    modes = read_text(root / "etc/nvpmodel.conf") or ""
    found = re.search(rf"^< *POWER_MODEL +ID={number} +NAME=(\S+)", modes, re.MULTILINE)
    return found[1] if found else "mode"
