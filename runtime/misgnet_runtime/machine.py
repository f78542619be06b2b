"""Host description: CPU, instruction sets, memory, operating system. Also reads one-value files of the kernel."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.formatting import plural

ROOT = Path("/")
_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm",
)  # fmt: skip
_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")


def describe_machine(root: Path = ROOT) -> dict[str, Any]:
    """Describes the host: processor, instruction sets relevant to INT8, cores, memory in GiB, system and Python.

    An arm64 board also has its model, a Jetson its Jetson Linux release; both are read below ``root``.
    """
    info, flags = _cpu_info(), cpu_flags()
    return {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "features": [f for f in _FEATURES if f in flags],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **_board(root),
    }


def available_memory(root: Path = ROOT) -> int | None:
    """Returns Linux's estimate of the bytes that programs can still take without swapping, or None if there is none."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Returns the version of each distribution of ``names`` that is installed."""
    from importlib import metadata  # slow to import

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def architecture() -> str:
    """Returns the processor's architecture under Linux's name: ``x86_64`` or ``aarch64``."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def fits_processor(needs: Collection[str]) -> bool:
    """Returns whether this processor has one of ``needs``, instruction sets or architectures, or there are none."""
    return not needs or not cpu_flags().union({architecture()}).isdisjoint(needs)


def check_processor(needs: Collection[str]) -> None:
    """Raises UnavailableError if this processor has none of ``needs``: instruction sets or architectures."""
    if fits_processor(needs):
        return
    flags = cpu_flags()
    found = ", ".join(f for f in _FEATURES if f in flags) or "no known extension"
    raise UnavailableError(
        f"it needs a processor with {' or '.join(needs)}; this one is {architecture()} with {found}; "
        "choose an engine built for it",
        short=f"needs {' or '.join(needs)}",
    )


def cpu_flags() -> set[str]:
    """Returns the instruction sets under Linux's names; empty if the system does not report them."""
    info = _cpu_info()
    return set((info.get("flags") or info.get("Features") or "").split())


def usable_cores() -> int:
    """Returns the number of cores that this process may use, or of all cores if the system does not report that."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_line(machine: dict[str, Any]) -> str:
    """Formats a description of :func:`describe_machine` as one line."""
    features = ", ".join(machine["features"]) or "no known INT8 extensions"
    board = "".join(f"{machine[key]}, " for key in ("model", "jetson_linux") if key in machine)
    memory = f"{machine['memory_gib']} GiB" if machine["memory_gib"] else "unknown memory"
    return f"{board}{machine['processor']}, {plural(machine['cores'], 'core')}, {memory}, {features}"


def read_text(path: Path) -> str | None:
    """Reads a kernel file without surrounding blanks and a device tree's final NUL; None if it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:  # reading a sensor that is off fails with EAGAIN or ENODATA
        return None


def read_int(path: Path) -> int | None:
    """Reads a whole number from a kernel file; None if the file cannot be read or holds something else."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def _memory_gib() -> float | None:
    """Returns the memory of the machine in GiB; None if the system does not report it, as on Windows and macOS."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError):
        return None


def _board(root: Path) -> dict[str, str]:
    """Returns an arm64 board's model, as arm64 processors have no name, and a Jetson's release, such as R36.3.0."""
    release = _RELEASE.match(read_text(root / "etc/nv_tegra_release") or "")
    found = {
        "model": read_text(root / "proc/device-tree/model"),
        "jetson_linux": f"R{release[1]}.{release[2]}" if release else None,
    }
    return {key: value for key, value in found.items() if value}


def _cpu_info() -> dict[str, str]:
    text = read_text(ROOT / "proc/cpuinfo") or ""
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}
