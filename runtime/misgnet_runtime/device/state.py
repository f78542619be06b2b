"""What decides how fast a machine is at this moment: power mode, clocks, temperatures, and what throttled it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from misgnet_runtime.device.sysfs import ROOT, read_int, read_text
from misgnet_runtime.manifest import Struct

# Of devfreq: 17000000.gpu (JetPack 6), 17000000.ga10b and 17000000.gv11b (5), 17000000.gp10b and 57000000.gpu (4).
_GPUS = re.compile(r"\w+\.(gpu|ga10b|gv11b|gp10b)")
_PLACEHOLDER = "PMIC-Die"  # of the TX family: always 100 degrees
_COLDEST = -200_000  # thousandths of a degree; a sensor that is off says -256000
# Of the Orin's hwmon ``soctherm_oc``, see "Over-current Throttling" in the Jetson Linux Developer Guide.
_THROTTLES = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}


class Clock(Struct, frozen=True):
    """In MHz, with the limits that are set; ``base``: of a processor with a turbo, what it keeps for ever."""

    name: str
    current: float
    lowest: float
    highest: float
    governor: str
    base: float | None = None

    @property
    def pinned(self) -> bool:
        """Whether the clock may not change, as ``jetson_clocks`` leaves it."""
        return self.lowest == self.highest

    @property
    def held_back(self) -> bool:
        """Whether the clock is over 5 % lower than what was asked of it."""
        asked = min(self.highest, self.base or self.highest)
        return (self.pinned or self.governor == "performance") and self.current < 0.95 * asked


class DeviceState(Struct, frozen=True):
    """``temperatures`` in degrees Celsius by zone; ``throttled``: events since the machine started, by cause.

    ``power_mode``: of a Jetson, as nvpmodel names it; ``memory_mhz``: of a Jetson, where this user may read it.
    """

    power_mode: str | None
    clocks: list[Clock]
    memory_mhz: float | None
    temperatures: dict[str, float]
    throttled: dict[str, int]


def read_state(root: Path = ROOT) -> DeviceState:
    """All of it now. What the machine does not tell is left out."""
    memory = read_int(root / "sys/kernel/debug/bpmp/debug/clk/emc/rate")  # in Hz, for root only
    clocks = [*_cpu_clocks(root), *_gpu_clocks(root)]
    return DeviceState(
        power_mode(root), clocks, None if memory is None else memory / 1e6, dict(_temperatures(root)),
        _processor_events(root) | dict(_board_events(root)),
    )  # fmt: skip


def throttling(before: DeviceState, after: DeviceState) -> list[str]:
    """What slowed the machine down between two moments, or holds it back at one of them."""
    events = {cause: count - before.throttled.get(cause, 0) for cause, count in after.throttled.items()}
    held_back = {
        clock.name: f"the clock of {clock.name} was at {clock.current:.0f} of {clock.highest:.0f} MHz, though it is "
        f"{'pinned' if clock.pinned else 'governed for performance'}"
        for clock in (*before.clocks, *after.clocks)
        if clock.held_back
    }
    throttled = [f"the machine throttled {count} times: {cause}" for cause, count in events.items() if count > 0]
    return [*throttled, *held_back.values()]


def power_mode(root: Path = ROOT) -> str | None:
    """ "MAXN (0)" of a Jetson: what ``nvpmodel -q`` says, or else what it keeps on disk."""
    try:
        answer = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    if found := re.search(r"NV Power Mode: *(\S+)\s+(\d+)", answer):
        return f"{found[1]} ({found[2]})"
    kept = re.search(r"pmode:0*(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    if kept is None:
        return None
    modes = read_text(root / "etc/nvpmodel.conf") or ""
    name = re.search(rf"^< *POWER_MODEL +ID={kept[1]} +NAME=(\S+)", modes, re.MULTILINE)
    return f"{name[1] if name else 'mode'} ({kept[1]})"


def _cpu_clocks(root: Path) -> Iterator[Clock]:
    """One clock for the cores that share it."""
    policies = (root / "sys/devices/system/cpu/cpufreq").glob("policy*")
    for policy in sorted(policies, key=lambda path: int(path.name[len("policy") :])):
        cores = (read_text(policy / "related_cpus") or "?").split()
        name = f"CPU {cores[0]}-{cores[-1]}" if len(cores) > 1 else f"CPU {cores[0]}"
        files = "scaling_cur_freq", "scaling_min_freq", "scaling_max_freq", "scaling_governor", "base_frequency"
        yield from _clock(name, policy, files, 1e3)  # all in kHz


def _gpu_clocks(root: Path) -> Iterator[Clock]:
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if _GPUS.fullmatch(folder.name):
            yield from _clock("GPU", folder, ("cur_freq", "min_freq", "max_freq", "governor", ""), 1e6)  # in Hz


def _clock(name: str, folder: Path, files: tuple[str, str, str, str, str], per_mhz: float) -> Iterator[Clock]:
    """One clock, or none where it cannot be read; ``files``: current, lowest, highest, governor and base clock."""
    current, lowest, highest = (read_int(folder / file) for file in files[:3])
    if current is not None and lowest is not None and highest is not None:
        base = read_int(folder / files[4])
        yield Clock(
            name, current / per_mhz, lowest / per_mhz, highest / per_mhz, read_text(folder / files[3]) or "unknown",
            None if base is None else base / per_mhz,
        )  # fmt: skip


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = read_text(zone / "type"), read_int(zone / "temp")
        if name and name != _PLACEHOLDER and value is not None and value > _COLDEST:
            yield name, value / 1000


def _processor_events(root: Path) -> dict[str, int]:
    """Of x86: how often a core or a package became too hot, summed over them."""
    found: dict[str, int] = {}
    for part in ("core", "package"):
        files = (root / "sys/devices/system/cpu").glob(f"cpu*/thermal_throttle/{part}_throttle_count")
        counts = [count for file in files if (count := read_int(file)) is not None]
        if counts:
            found[f"{part} too hot"] = sum(counts)
    return found


def _board_events(root: Path) -> Iterator[tuple[str, int]]:
    for name in (root / "sys/class/hwmon").glob("hwmon*/name"):
        if read_text(name) == "soctherm_oc":
            counts = {cause: read_int(name.with_name(f"{file}_event_cnt")) for file, cause in _THROTTLES.items()}
            yield from ((cause, count) for cause, count in counts.items() if count is not None)
