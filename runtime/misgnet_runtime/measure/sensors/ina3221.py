"""Reads the INA3221 power monitors of a Jetson.

The kernel's hwmon driver (JetPack 6 and 7) reports the bus voltage in mV and the current in mA of three channels per
monitor, see https://docs.kernel.org/hwmon/ina3221.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.machine import ROOT, read_int, read_text

_DRIVER = Path("sys/bus/i2c/drivers/ina3221")
# Rails that together supply the whole module. VDD_IN measures its input. The AGX Orin has no such rail: VIN_SYS_5V0 is
# one of several supplies (https://github.com/rbonghi/jetson_stats/issues/344). VDDQ_VDD2_1V8AO also has 5 V and is
# assumed to be fed by VIN_SYS_5V0, so it is reported but not added to the sum.
_WHOLE = (("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))


@dataclass(frozen=True)
class Channel:
    """A rail and its sensor files."""

    rail: str
    # In mV.
    voltage: Path
    # In mA.
    current: Path

    def watts(self) -> float | None:
        """Returns the power; None if a file cannot be read."""
        voltage, current = read_int(self.voltage), read_int(self.current)
        return None if voltage is None or current is None else voltage * current / 1e6


class Ina3221:
    """Measures the power of all rails of a board."""

    source = "INA3221"

    def __init__(self, channels: list[Channel]) -> None:
        self._channels = channels
        rails = {channel.rail for channel in channels}
        self._whole = next((whole for whole in _WHOLE if rails.issuperset(whole)), ())
        self.total = " + ".join(self._whole) or None

    def read(self) -> dict[str, float]:
        """Returns the current watts by rail, and their sum if several rails together supply the whole module."""
        found = {channel.rail: channel.watts() for channel in self._channels}
        watts = {rail: value for rail, value in found.items() if value is not None}
        if self.total and watts.keys() >= set(self._whole):
            watts[self.total] = sum(watts[rail] for rail in self._whole)
        return watts


def find_ina3221(root: Path = ROOT) -> Ina3221:
    """Finds the monitors; raises UnavailableError if there are none or none can be read."""
    channels = list(_channels(root / _DRIVER))
    if not channels:
        raise UnavailableError("no INA3221 of a Jetson")
    readable = [channel for channel in channels if channel.watts() is not None]
    if not readable:
        raise UnavailableError(f"the INA3221 of {', '.join(c.rail for c in channels)} cannot be read")
    return Ina3221(readable)


def _channels(driver: Path) -> Iterator[Channel]:
    for number in (1, 2, 3):  # in7 is the sum of the shunt voltages
        for label in sorted(driver.glob(f"*/hwmon/hwmon*/in{number}_label")):
            rail = read_text(label)
            if rail and rail != "NC":  # not connected
                yield Channel(rail, label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
