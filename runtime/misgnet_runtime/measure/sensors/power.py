"""Measures the energy of each power rail while code runs. Nothing is estimated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.machine import ROOT
from misgnet_runtime.measure.sensors.ina3221 import find_ina3221
from misgnet_runtime.measure.sensors.nvidia import find_nvml
from misgnet_runtime.measure.sensors.rapl import find_rapl

_PERIOD = 0.1  # seconds between two readings


class PowerMeter(Protocol):
    """Reads the power of several rails."""

    @property
    def source(self) -> str:
        """Name of the sensor."""

    @property
    def total(self) -> str | None:
        """The rail that supplies the whole module; None if there is none."""

    def read(self) -> dict[str, float]:
        """Returns the watts of each readable rail, now or averaged since the last call."""


def find_meters(root: Path = ROOT) -> tuple[list[PowerMeter], list[str]]:
    """Returns the power meters of this machine, and the reasons why others are unavailable."""
    finders: list[Callable[[], PowerMeter]] = [lambda: find_ina3221(root), lambda: find_rapl(root), find_nvml]
    meters, missing = [], []
    for find in finders:
        try:
            meters.append(find())
        except UnavailableError as error:
            missing.append(str(error))
    return meters, missing


@dataclass
class Energy:
    """Energy of each rail."""

    joules: dict[str, float] = field(default_factory=dict)
    # Time covered by the readings of each rail.
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, watts: dict[str, float], seconds: float) -> None:
        for rail, value in watts.items():
            self.joules[rail] = self.joules.get(rail, 0.0) + value * seconds
            self.seconds[rail] = self.seconds.get(rail, 0.0) + seconds

    def mean_watts(self) -> dict[str, float]:
        return {rail: joules / self.seconds[rail] for rail, joules in self.joules.items()}


@contextmanager
def count_energy(meters: Sequence[PowerMeter], energy: Energy) -> Iterator[None]:
    """Adds the energy used during the block to ``energy``; reads each meter about ten times a second in a thread."""
    stop = Event()
    threads = [Thread(target=_count, args=(meter, energy, stop), name="misgnet-power") for meter in meters]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _count(meter: PowerMeter, energy: Energy, stop: Event) -> None:
    """Adds readings to ``energy`` until ``stop``; each counts for the time since the previous one."""
    meter.read()
    before = time.perf_counter()
    stopped = False
    while not stopped:
        stopped = stop.wait(_PERIOD)
        watts, now = meter.read(), time.perf_counter()
        energy.add(watts, now - before)
        before = now
