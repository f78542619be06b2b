"""Energy counters of x86 processors (RAPL), see https://docs.kernel.org/power/powercap/powercap.html."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.machine import ROOT, read_int, read_text


@dataclass(frozen=True)
class Zone:
    """``counter`` counts microjoules and starts anew after ``wraps_at``."""

    rail: str
    counter: Path
    wraps_at: int


class Rapl:
    """Packages and their parts; none of them is the whole machine."""

    source = "RAPL"
    total = None

    def __init__(self, zones: list[Zone]) -> None:
        self._zones = zones
        self._last = self._counters()
        self._read_at = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Mean watts by zone since the last call."""
        before, self._last = self._last, self._counters()
        started, self._read_at = self._read_at, time.perf_counter()
        microseconds = 1e6 * (self._read_at - started)
        return {
            zone.rail: (self._last[zone.rail] - before[zone.rail]) % (zone.wraps_at + 1) / microseconds
            for zone in self._zones
            if zone.rail in before and zone.rail in self._last
        }

    def _counters(self) -> dict[str, int]:
        found = {zone.rail: read_int(zone.counter) for zone in self._zones}
        return {rail: count for rail, count in found.items() if count is not None}


def find_rapl(root: Path = ROOT) -> Rapl:
    """Raises UnavailableError where there are no counters, or where only root may read them (most systems)."""
    folders = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))  # AMD's are called so too
    if not folders:
        raise UnavailableError("no RAPL counters")
    zones = [zone for folder in folders if (zone := _zone(folder))]
    if not zones:
        raise UnavailableError(f"RAPL: {folders[0] / 'energy_uj'} cannot be read; root may, or who root lets")
    return Rapl(zones)


def _zone(folder: Path) -> Zone | None:
    wraps_at = read_int(folder / "max_energy_range_uj")
    if wraps_at is None or read_int(folder / "energy_uj") is None:
        return None
    return Zone(_rail(folder), folder / "energy_uj", wraps_at)


def _rail(folder: Path) -> str:
    """``package-0`` of the folder intel-rapl:0, and ``package-0 dram`` of its part intel-rapl:0:1."""
    name = read_text(folder / "name") or folder.name
    above = folder.name.rpartition(":")[0]
    return name if above == "intel-rapl" else f"{read_text(folder.with_name(above) / 'name')} {name}"
