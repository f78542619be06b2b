"""Tests of the sensor readers with fake file system trees."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from misgnet_runtime import machine
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.machine import read_int, read_text
from misgnet_runtime.measure.sensors.clocks import (
    Clock,
    DeviceState,
    read_state,
    summary,
    throttling,
    warn_if_clocks_float,
    watch_state,
)
from misgnet_runtime.measure.sensors.ina3221 import find_ina3221
from misgnet_runtime.measure.sensors.nvidia import find_nvml
from misgnet_runtime.measure.sensors.nvpmodel import power_mode
from misgnet_runtime.measure.sensors.power import Energy, count_energy, find_meters
from misgnet_runtime.measure.sensors.rapl import find_rapl
from support.fake_nvml import FakeNvml
from support.logs import Collected

Program = Callable[[str, str], None]
CPU = "sys/devices/system/cpu"


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def hwmon(chip: str, *rails: tuple[str, int, int]) -> dict[str, object]:
    """Returns the files of a monitor; ``rails``: label, millivolts and milliamperes of its channels."""
    folder = f"sys/bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon3"
    found: dict[str, object] = {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": 9}
    for number, (label, volts, amperes) in enumerate(rails, 1):
        found |= {
            f"{folder}/in{number}_label": label, f"{folder}/in{number}_input": volts,
            f"{folder}/curr{number}_input": amperes,
        }  # fmt: skip
    return found


def policy(number: int, cores: str, clocks: tuple[int, int, int], governor: str) -> dict[str, object]:
    """Returns the files of a CPU frequency policy; ``clocks``: current, lowest and highest, in kHz."""
    current, lowest, highest = clocks
    folder = f"{CPU}/cpufreq/policy{number}"
    return {
        f"{folder}/related_cpus": cores, f"{folder}/scaling_cur_freq": current, f"{folder}/scaling_min_freq": lowest,
        f"{folder}/scaling_max_freq": highest, f"{folder}/scaling_governor": governor,
    }  # fmt: skip


def devfreq(name: str, current: int, lowest: int, highest: int) -> dict[str, object]:
    folder = f"sys/class/devfreq/{name}"
    return {
        f"{folder}/cur_freq": current, f"{folder}/min_freq": lowest, f"{folder}/max_freq": highest,
        f"{folder}/governor": "nvhost_podgov",
    }  # fmt: skip


# JetPack 6 on an Orin NX.
ORIN = {
    **hwmon("1-0040", ("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 600), ("VDD_SOC", 5000, 400)),
    **policy(0, "0 1 2 3", (1_190_400, 115_200, 1_984_000), "schedutil"),
    **policy(4, "4 5 6 7", (1_190_400, 115_200, 1_984_000), "schedutil"),
    **devfreq("17000000.gpu", 306_000_000, 306_000_000, 918_000_000),
    **devfreq("15340000.vic", 1, 1, 2),
    "sys/kernel/debug/bpmp/debug/clk/emc/rate": 3_199_000_000,
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": 48_250,
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal", "sys/class/thermal/thermal_zone1/temp": -256_000,
    "sys/class/thermal/thermal_zone3/type": "gpu-thermal",
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon2/name": "soctherm_oc", "sys/class/hwmon/hwmon2/oc1_event_cnt": 0,
    "sys/class/hwmon/hwmon2/oc3_event_cnt": 7,
    "etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 36191598, BOARD: generic, EABI: aarch64, DATE: x",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >\n< PM_CONFIG DEFAULT=2 >",
    "var/lib/nvpmodel/status": "pmode:0002",
    "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
}  # fmt: skip


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Hides the machine's own programs and NVML; returns a function that puts a program on the path."""
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type]
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


# One-value files


def test_an_unreadable_file_is_read_as_none(tmp_path: Path) -> None:
    tree(tmp_path, {"number": 7, "word": "x"})
    (tmp_path / "binary").write_bytes(b"\xff\0")
    assert (read_int(tmp_path / "number"), read_int(tmp_path / "word"), read_int(tmp_path / "no")) == (7, None, None)
    assert read_text(tmp_path) is None and read_text(tmp_path / "binary") == "�"


# Jetson


def test_rails_of_an_orin_nx_are_read(tmp_path: Path) -> None:
    meter = find_ina3221(tree(tmp_path, ORIN))
    assert (meter.source, meter.total) == ("INA3221", "VDD_IN")
    assert meter.read() == pytest.approx({"VDD_IN": 10, "VDD_CPU_GPU_CV": 3, "VDD_SOC": 2})


def test_the_power_of_an_agx_is_the_sum_of_three_rails(tmp_path: Path) -> None:
    """VIN_SYS_5V0 is one of three supplies; it feeds VDDQ_VDD2_1V8AO, which is not added again."""
    first = hwmon("1-0040", ("VDD_GPU_SOC", 19_000, 500), ("VDD_CPU_CV", 19_000, 200), ("VIN_SYS_5V0", 5000, 800))
    second = hwmon("1-0041", ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 0, 0))
    meter = find_ina3221(tree(tmp_path, {**first, **second}))
    assert meter.total == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert meter.read() == pytest.approx(
        {"VDD_GPU_SOC": 9.5, "VDD_CPU_CV": 3.8, "VIN_SYS_5V0": 4, "VDDQ_VDD2_1V8AO": 0.5, meter.total: 17.3}
    )


def test_an_unreadable_rail_is_omitted_together_with_the_sum(tmp_path: Path) -> None:
    rails = ("VDD_GPU_SOC", 19_000, 500), ("VDD_CPU_CV", 19_000, 200), ("VIN_SYS_5V0", 5000, 800)
    meter = find_ina3221(tree(tmp_path, hwmon("1-0040", *rails)))
    (tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr3_input").unlink()
    assert meter.read() == pytest.approx({"VDD_GPU_SOC": 9.5, "VDD_CPU_CV": 3.8})


def test_an_unreadable_monitor_is_reported_with_its_rails(tmp_path: Path) -> None:
    files = {name: content for name, content in ORIN.items() if "curr" not in name}
    with pytest.raises(UnavailableError, match="INA3221 of VDD_IN, VDD_CPU_GPU_CV, VDD_SOC cannot be read"):
        find_ina3221(tree(tmp_path, files))


# x86 and GPUs


def zone(name: str, label: str, energy: object, largest: int = 1_000_000) -> dict[str, object]:
    folder = f"sys/class/powercap/{name}"
    found: dict[str, object] = {f"{folder}/name": label, f"{folder}/max_energy_range_uj": largest}
    return found if energy is None else {**found, f"{folder}/energy_uj": energy}


def test_rapl_measures_a_processor_and_its_parts(tmp_path: Path) -> None:
    moment = iter([10.0, 10.5, 10.6])
    tree(tmp_path, {**zone("intel-rapl:0", "package-0", 999_999), **zone("intel-rapl:0:1", "dram", 0)})
    tree(tmp_path, zone("intel-rapl-mmio:0", "package-0", 5))
    meter = find_rapl(tmp_path, clock=lambda: next(moment))
    tree(tmp_path, {**zone("intel-rapl:0", "package-0", 499_999), **zone("intel-rapl:0:1", "dram", 250_000)})
    assert meter.read() == pytest.approx({"package-0": 1.0, "package-0 dram": 0.5}, rel=1e-5)  # the first wrapped
    (tmp_path / "sys/class/powercap/intel-rapl:0:1/energy_uj").unlink()
    assert meter.read() == {"package-0": 0.0}


def test_counters_that_only_root_may_read_are_reported(tmp_path: Path) -> None:
    tree(tmp_path, zone("intel-rapl:0", "package-0", None))
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir()  # fails for root too
    with pytest.raises(UnavailableError, match=r"intel-rapl:0/energy_uj cannot be read; run as root"):
        find_rapl(tmp_path)


def nvml(monkeypatch: pytest.MonkeyPatch, milliwatts: dict[str, int | None], driver: bool = True) -> FakeNvml:
    fake = FakeNvml(milliwatts, driver)
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    return fake


def test_nvml_measures_the_boards_that_report_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = nvml(monkeypatch, {"NVIDIA A100": 61_520, "Tesla K80": None, "NVIDIA L4": 16_000})
    ((meter,), _) = find_meters(tmp_path)
    assert (meter.source, meter.total) == ("NVML", None)
    assert meter.read() == {"GPU 0 (NVIDIA A100)": 61.52, "GPU 2 (NVIDIA L4)": 16.0}
    fake.milliwatts["NVIDIA A100"] = None
    assert meter.read() == {"GPU 2 (NVIDIA L4)": 16.0}


@pytest.mark.parametrize(
    ("milliwatts", "driver", "reason"),
    [
        ({}, False, "no NVML: NVML Shared Library Not Found"),
        ({}, True, "NVML: no GPU reports its power"),
        ({"Orin (nvgpu)": None}, True, "NVML: no GPU reports its power"),
    ],
)
def test_a_missing_nvml_is_reported_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, milliwatts: dict[str, int | None], driver: bool, reason: str
) -> None:
    nvml(monkeypatch, milliwatts, driver)
    with pytest.raises(UnavailableError, match=f"^{reason}$"):
        find_nvml()


def test_missing_meters_are_reported_with_their_reasons(tmp_path: Path) -> None:
    assert find_meters(tmp_path)[0] == []
    meters, missing = find_meters(tree(tmp_path, ORIN))
    assert [meter.source for meter in meters] == ["INA3221"]
    assert missing == ["no RAPL counters", "no NVML: on a machine with an NVIDIA GPU, pip install nvidia-ml-py"]


def test_energy_counts_only_the_time_covered_by_readings() -> None:
    class Meter:
        source, total = "a fake", None

        def __init__(self) -> None:
            self.readings = iter([{"a": 99.0}, {"a": 4.0, "b": 2.0}])

        def read(self) -> dict[str, float]:
            return next(self.readings, {"a": 4.0})

    energy = Energy()
    with count_energy([Meter()], energy):
        pass
    with count_energy([], energy):
        pass
    assert energy.mean_watts() == pytest.approx({"a": 4.0, "b": 2.0})  # the first reading only starts the time
    energy.add({"a": 1.0}, 3 * energy.seconds["a"])
    assert energy.mean_watts()["a"] == pytest.approx((4 + 3 * 1) / 4)


# The machine's state


def test_a_pinned_gpu_clock_is_recognised(tmp_path: Path) -> None:
    (clock,) = read_state(tree(tmp_path, devfreq("17000000.gpu", 1_300_500_000, 1_300_500_000, 1_300_500_000))).clocks
    assert (clock.name, clock.current, clock.pinned, clock.held_back) == ("GPU", 1300.5, True, False)


def test_state_of_an_orin_is_read(tmp_path: Path) -> None:
    state = read_state(tree(tmp_path, ORIN))
    assert state.clocks == [
        Clock("CPU 0-3", 1190.4, 115.2, 1984.0, "schedutil"), Clock("CPU 4-7", 1190.4, 115.2, 1984.0, "schedutil"),
        Clock("GPU", 306.0, 306.0, 918.0, "nvhost_podgov"),
    ]  # fmt: skip
    assert state.memory_mhz == 3199.0
    assert state.temperatures == {"cpu-thermal": 48.25}
    assert state.throttled == {"under-voltage": 0, "instantaneous over-current": 7}


def test_a_machine_without_sensors_has_an_empty_state(tmp_path: Path) -> None:
    state = read_state(tmp_path)
    assert (power_mode(tmp_path), state.clocks, state.memory_mhz) == (None, [], None)
    assert (state.temperatures, state.throttled) == ({}, {})


def test_the_power_mode_comes_from_nvpmodel_or_its_status_file(tmp_path: Path, program: Program) -> None:
    program("nvpmodel", 'echo "NV Fan Mode:quiet"; echo "NV Power Mode: MODE_30W_ALL"; echo 3')
    assert power_mode(tree(tmp_path, ORIN)) == "MODE_30W_ALL (3)"
    program("nvpmodel", 'echo "NVPM ERROR: cannot open the file" >&2; exit 1')
    assert power_mode(tmp_path) == "15W (2)"
    (tmp_path / "etc/nvpmodel.conf").unlink()
    assert power_mode(tmp_path) == "mode (2)"


def test_over_current_during_the_run_is_reported(tmp_path: Path) -> None:
    before = read_state(tree(tmp_path, ORIN))
    after = read_state(tree(tmp_path, {"sys/class/hwmon/hwmon2/oc3_event_cnt": 19}))
    assert throttling([before, after]) == ["the machine throttled 12 times: instantaneous over-current"]
    assert throttling([after, after]) == []


def test_overheating_of_an_x86_processor_is_reported(tmp_path: Path) -> None:
    counts = {f"{CPU}/cpu{i}/thermal_throttle/{part}_throttle_count": i for i in (0, 1) for part in ("core", "package")}
    before = read_state(tree(tmp_path, dict(counts)))
    assert before.throttled == {"core too hot": 1, "package too hot": 1}
    after = read_state(tree(tmp_path, {f"{CPU}/cpu1/thermal_throttle/core_throttle_count": 5}))
    assert throttling([before, after]) == ["the machine throttled 4 times: core too hot"]


def test_watch_state_reads_until_its_block_ends(tmp_path: Path) -> None:
    tree(tmp_path, ORIN)
    states: list[DeviceState] = []
    with watch_state(states, tmp_path, period=0.001):
        while len(states) < 3:
            time.sleep(0.001)
    count = len(states)
    time.sleep(0.01)
    assert len(states) == count and set(map(repr, states)) == {repr(read_state(tmp_path))}


def test_a_summary_has_median_clocks_and_highest_temperatures(tmp_path: Path) -> None:
    states = []
    for current, heat in ((500_000, 40_000), (1_500_000, 90_000), (1_600_000, 70_000)):
        tree(tmp_path, policy(0, "0 1", (current, 500_000, 2_000_000), "schedutil"))
        heats = {"sys/class/thermal/thermal_zone0/type": "cpu", "sys/class/thermal/thermal_zone0/temp": heat}
        states.append(read_state(tree(tmp_path, dict(heats))))
    found = summary(states)
    assert found.clocks == [Clock("CPU 0-1", 1500.0, 500.0, 2000.0, "schedutil")]
    assert (found.temperatures, found.memory_mhz) == ({"cpu": 90.0}, None)
    assert summary([read_state(tree(tmp_path / "orin", ORIN))]) == read_state(tmp_path / "orin")


@pytest.mark.parametrize(
    ("clock", "reason"),
    [
        (
            (0, "0", (1_000_000, 500_000, 2_000_000), "performance"),
            "though it is governed for performance",
        ),
        ((0, "0", (1_000_000, 2_000_000, 2_000_000), "userspace"), "though it is pinned"),
        ((0, "0", (1_000_000, 500_000, 2_000_000), "schedutil"), None),
        ((0, "0", (1_950_000, 500_000, 2_000_000), "performance"), None),
    ],
)
def test_a_clock_that_is_held_back_is_reported_once(
    tmp_path: Path, clock: tuple[int, str, tuple[int, int, int], str], reason: str | None
) -> None:
    state = read_state(tree(tmp_path, policy(*clock)))
    assert throttling([state, state]) == ([f"the clock of CPU 0 was at 1000 of 2000 MHz, {reason}"] if reason else [])


def test_a_clock_below_the_turbo_but_above_the_base_is_not_held_back(tmp_path: Path) -> None:
    files = {
        **policy(0, "0", (2_900_000, 800_000, 3_800_000), "performance"),
        f"{CPU}/cpufreq/policy0/base_frequency": 2_800_000,
    }
    state = read_state(tree(tmp_path, files))
    assert throttling([state, state]) == []
    state = read_state(tree(tmp_path, {f"{CPU}/cpufreq/policy0/scaling_cur_freq": 1_200_000}))
    assert len(throttling([state, state])) == 1


def test_a_board_is_described_by_its_model(tmp_path: Path) -> None:
    here = machine.describe_machine(tree(tmp_path, ORIN))
    assert here["model"] == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert here["jetson_linux"] == "R36.3.0"
    assert machine.machine_line(here).startswith(f"{here['model']}, R36.3.0, {here['processor']}, ")
    assert machine.available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir(exist_ok=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 7 kB\nMemAvailable:    2048 kB\nSwapFree: 9 kB\n")
    assert machine.available_memory(tmp_path) == 2 << 20
    plain = machine.describe_machine(tmp_path / "nowhere")
    assert "model" not in plain and "jetson_linux" not in plain


def test_floating_clocks_of_a_jetson_are_reported_in_one_line(tmp_path: Path) -> None:
    logged = Collected()
    warn_if_clocks_float(logged.log, tmp_path)  # no Jetson
    warn_if_clocks_float(logged.log, tree(tmp_path / "floating", ORIN))
    fixed = {
        "etc/nv_tegra_release": ORIN["etc/nv_tegra_release"], **devfreq("17000000.gpu", 2, 2, 2),
        **policy(0, "0 1", (2_000_000, 2_000_000, 2_000_000), "schedutil"),
    }  # fmt: skip
    warn_if_clocks_float(logged.log, tree(tmp_path / "fixed", fixed))
    (line,) = logged.warnings
    assert "GPU are not fixed" in line and "sudo nvpmodel -m MODE" in line and "sudo jetson_clocks" in line
