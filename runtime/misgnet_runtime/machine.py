"""What machine this is, for every figure that depends on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


def describe_machine() -> dict[str, Any]:
    """Processor, instruction sets that matter for INT8, cores, memory in GiB, system, Python."""
    info, flags = _cpu_info(), cpu_flags()
    return {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "features": [f for f in _FEATURES if f in flags],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def cpu_flags() -> set[str]:
    """Instruction sets under Linux's names; empty where the system does not tell."""
    info = _cpu_info()
    return set((info.get("flags") or info.get("Features") or "").split())


def usable_cores() -> int:
    """Cores that this process may use, where the system tells; else all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_line(machine: dict[str, Any]) -> str:
    """One line for a table's caption."""
    features = ", ".join(machine["features"]) or "no INT8 extensions known"
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {features}"


def _cpu_info() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}
