"""Reads the energy counters of x86 processors (RAPL), see https://docs.kernel.org/power/powercap/powercap.html."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.machine import ROOT, read_int, read_text


@dataclass(frozen=True)
class Zone:
    """An energy counter."""

    rail: str
    # File with the count of microjoules.
    counter: Path
    # Value after which the counter restarts at 0.
    wraps_at: int


class Rapl:
    """Measures the power of processor packages and their parts; no rail covers the whole machine."""

    source = "RAPL"
    total = None

    def __init__(self, zones: list[Zone], clock: Callable[[], float]) -> None:
        self._zones, self._clock = zones, clock
        self._last = self._counters()
        self._read_at = clock()

    def read(self) -> dict[str, float]:
        """Returns the mean watts by zone since the last call."""
        before, self._last = self._last, self._counters()
        started, self._read_at = self._read_at, self._clock()
        microseconds = 1e6 * (self._read_at - started)
        return {
            zone.rail: (self._last[zone.rail] - before[zone.rail]) % (zone.wraps_at + 1) / microseconds
            for zone in self._zones
            if zone.rail in before and zone.rail in self._last
        }

    def _counters(self) -> dict[str, int]:
        found = {zone.rail: read_int(zone.counter) for zone in self._zones}
        return {rail: count for rail, count in found.items() if count is not None}


def find_rapl(root: Path = ROOT, *, clock: Callable[[], float] = time.perf_counter) -> Rapl:
    """Finds the counters; raises UnavailableError if there are none, or only root may read them (most systems).

    ``clock`` returns seconds; the power is averaged over its differences.
    """
    folders = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))  # AMD's counters have this name, too
    if not folders:
        raise UnavailableError("no RAPL counters")
    zones = [zone for folder in folders if (zone := _zone(folder))]
    if not zones:
        raise UnavailableError(f"RAPL: {folders[0] / 'energy_uj'} cannot be read; run as root or grant read permission")
    return Rapl(zones, clock)


def _zone(folder: Path) -> Zone | None:
    wraps_at = read_int(folder / "max_energy_range_uj")
    if wraps_at is None or read_int(folder / "energy_uj") is None:
        return None
    return Zone(_rail(folder), folder / "energy_uj", wraps_at)


def _rail(folder: Path) -> str:
    """Returns the name of a zone: ``package-0`` for intel-rapl:0, ``package-0 dram`` for its part intel-rapl:0:1."""
    name = read_text(folder / "name") or folder.name
    above = folder.name.rpartition(":")[0]
    return name if above == "intel-rapl" else f"{read_text(folder.with_name(above) / 'name')} {name}"
