"""Reads clocks, temperatures and throttling events, once or repeatedly while code runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from msgspec.structs import replace

from misgnet_runtime.formatting import plural
from misgnet_runtime.log import EventLog
from misgnet_runtime.machine import ROOT, describe_machine, read_int, read_text
from misgnet_runtime.storage.schema import Struct

_GPU = "17000000.gpu"  # devfreq name on an Orin
_COLDEST = -200_000  # thousandths of a degree; a sensor that is off reports -256000
# Files of the Orin's hwmon ``soctherm_oc``, see "Over-current Throttling" in the Jetson Linux Developer Guide.
_THROTTLES = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}


class Clock(Struct, frozen=True):
    """A clock and its configured limits, in MHz."""

    # Such as "CPU 0-3" or "GPU".
    name: str
    current: float
    # Lower limit.
    lowest: float
    # Upper limit.
    highest: float
    # Frequency governor of the kernel; "unknown": not readable.
    governor: str
    # Sustained clock of a processor with a turbo.
    base: float | None = None

    @property
    def pinned(self) -> bool:
        """Returns whether the clock is fixed, as set by ``jetson_clocks``."""
        return self.lowest == self.highest

    @property
    def held_back(self) -> bool:
        """Returns whether the clock is more than 5 % below the clock that its settings demand."""
        demanded = min(self.highest, self.base or self.highest)
        return (self.pinned or self.governor == "performance") and self.current < 0.95 * demanded


class DeviceState(Struct, frozen=True):
    """State of the machine at one moment, or a summary."""

    # Clocks of the CPU and, on a Jetson, of the GPU.
    clocks: list[Clock]
    # Memory clock of a Jetson, if this user may read it.
    memory_mhz: float | None
    # Degrees Celsius by zone.
    temperatures: dict[str, float]
    # Throttling events since the machine started, by cause.
    throttled: dict[str, int]


def read_state(root: Path = ROOT) -> DeviceState:
    """Reads the current state; values that the machine does not report are omitted."""
    memory = read_int(root / "sys/kernel/debug/bpmp/debug/clk/emc/rate")  # in Hz, readable by root only
    clocks = [*_cpu_clocks(root), *_gpu_clocks(root)]
    throttled = {**_processor_events(root), **dict(_board_events(root))}
    return DeviceState(clocks, None if memory is None else memory / 1e6, dict(_temperatures(root)), throttled)


def warn_if_clocks_float(log: EventLog, root: Path = ROOT) -> None:
    """Logs a warning if clocks of a Jetson are not fixed: they follow the load, so times of kernels vary."""
    if "jetson_linux" not in describe_machine(root):
        return
    floating = [clock.name for clock in read_state(root).clocks if not clock.pinned]
    if floating:
        log.warning(
            f"the clocks of {', '.join(floating)} are not fixed, so the fastest kernels and engine may not be found; "
            "choose a power mode with sudo nvpmodel -m MODE, fix the clocks with sudo jetson_clocks, and run this again"
        )


@contextmanager
def watch_state(states: list[DeviceState], root: Path = ROOT, *, period: float = 1.0) -> Iterator[None]:
    """Appends the state to ``states`` at the start of the block and then every ``period`` seconds."""
    stop = Event()

    def watch() -> None:
        states.append(read_state(root))
        while not stop.wait(period):
            states.append(read_state(root))

    thread = Thread(target=watch, name="misgnet-state")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def summary(states: Sequence[DeviceState]) -> DeviceState:
    """Returns the median clocks, the highest temperatures, and the events of the last state."""
    last = states[-1]
    currents: dict[str, list[float]] = {}
    for clock in (clock for state in states for clock in state.clocks):
        currents.setdefault(clock.name, []).append(clock.current)
    clocks = [replace(clock, current=statistics.median(currents[clock.name])) for clock in last.clocks]
    memory = [state.memory_mhz for state in states if state.memory_mhz is not None]
    highest: dict[str, float] = {}
    for zone, value in (item for state in states for item in state.temperatures.items()):
        highest[zone] = max(value, highest.get(zone, value))
    return DeviceState(clocks, statistics.median(memory) if memory else None, highest, last.throttled)


def throttling(states: Sequence[DeviceState]) -> list[str]:
    """Returns the throttling events between the first and the last state, and the clocks held back in any of them."""
    first, last = states[0].throttled, states[-1].throttled
    events = {cause: count - first.get(cause, 0) for cause, count in last.items()}
    held_back = {
        clock.name: f"the clock of {clock.name} was at {clock.current:.0f} of {clock.highest:.0f} MHz, though it is "
        f"{'pinned' if clock.pinned else 'governed for performance'}"
        for state in states
        for clock in state.clocks
        if clock.held_back
    }
    throttled = [
        f"the machine throttled {plural(count, 'time')}: {cause}" for cause, count in events.items() if count > 0
    ]
    return [*throttled, *held_back.values()]


def _cpu_clocks(root: Path) -> Iterator[Clock]:
    """Yields one clock for each group of cores that share it."""
    policies = (root / "sys/devices/system/cpu/cpufreq").glob("policy*")
    for policy in sorted(policies, key=lambda path: int(path.name[len("policy") :])):
        cores = (read_text(policy / "related_cpus") or "?").split()
        name = f"CPU {cores[0]}-{cores[-1]}" if len(cores) > 1 else f"CPU {cores[0]}"
        files = "scaling_cur_freq", "scaling_min_freq", "scaling_max_freq", "base_frequency"
        yield from _clock(name, [read_int(policy / file) for file in files], 1e3, policy / "scaling_governor")


def _gpu_clocks(root: Path) -> Iterator[Clock]:
    folder = root / "sys/class/devfreq" / _GPU
    files = "cur_freq", "min_freq", "max_freq"
    yield from _clock("GPU", [*(read_int(folder / file) for file in files), None], 1e6, folder / "governor")


def _clock(name: str, values: list[int | None], per_mhz: float, governor: Path) -> Iterator[Clock]:
    """Yields one clock, or none if it cannot be read; ``values``: current, lowest, highest and base clock."""
    current, lowest, highest, base = (None if value is None else value / per_mhz for value in values)
    if current is not None and lowest is not None and highest is not None:
        yield Clock(
            name=name, current=current, lowest=lowest, highest=highest, governor=read_text(governor) or "unknown",
            base=base,
        )  # fmt: skip


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = read_text(zone / "type"), read_int(zone / "temp")
        if name and value is not None and value > _COLDEST:
            yield name, value / 1000


def _processor_events(root: Path) -> dict[str, int]:
    """Returns how often cores and packages of an x86 processor became too hot."""
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
