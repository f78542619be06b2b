"""Tests the kit with commands that are only imitated: outcomes, records, tables and exit codes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpu import driver_tests, engine_runs, kit, machine
from gpu.budget import Budget, Finished
from gpu.driver_tests import read_junit, run_driver_tests
from gpu.engine_runs import EngineRuns
from gpu.machine import commit, file_name
from gpu.record import (
    PARTS,
    Agreement,
    DriverTests,
    Form,
    Machine,
    NetworkRuns,
    NetworkTime,
    Record,
    Step,
    decode,
)
from gpu.table import markdown
from misgnet_runtime.bundle import EngineEntry
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.measure.sensors.clocks import DeviceState
from support import gpu
from support.bundles import FLOAT, INT8, RTX, make_bundle
from support.paths import ROOT

MACHINE = Machine(
    device="NVIDIA Test 9000 | x", compute_capability="sm86", memory_gib=24.0, cuda_driver="13.0",
    nvidia_driver="580.1", versions={"torch": "2.13.0"},
    host={"processor": "CPU", "cores": 2, "memory_gib": 8.0, "features": []},
)  # fmt: skip
TIMING = Timing("rtx-sm86", "float16", 1, 100, 1.25, 1.5, 2.0, 800.0)


def on_device(name: str, kind: Any, precision: str = "float16") -> EngineEntry:
    graph = INT8.graph
    return EngineEntry(name, kind, graph, graph, precision, "", ["sm86"], compiled="to be compiled on the device")


class Commands:
    """Imitates the project's commands: the exit code of each, by a word that its arguments contain."""

    def __init__(self, codes: Mapping[str, int | None] | None = None) -> None:
        self.codes = codes or {}
        self.lines: list[list[str]] = []

    def __call__(
        self, command: Sequence[str], seconds: float, folder: Path, environment: Mapping[str, str]
    ) -> Finished:
        words = list(command)[3:]  # without "python -m PACKAGE"
        self.lines.append(words)
        code = next((code for word, code in self.codes.items() if word in words), 0)
        if words[0] == "bench":
            self.report(Path(words[words.index("--json") + 1]))
        return Finished(code, f"much\nerror: exit code {code}\n", 1.0)

    def report(self, path: Path) -> None:
        state = DeviceState([], None, {}, {})
        conditions = {"machine": {}, "versions": {}, "power_modes": [None, None], "before": state, "during": state}
        conditions["after"] = state
        report = {
            "created": "", "bundle": "", "bundle_version": 1, "bundle_sha256": "", "engines": [], "not_run": [],
            "settings": {"seconds": 1.0, "rounds": 1, "warm_up": 1.0, "threads": 1}, "timings": [TIMING],
            "reference": "rtx-sm86", "ratios": [1.0], "power": {"meters": [], "missing": []},
            "conditions": conditions, "scene": None, "warnings": [],
        }  # fmt: skip
        path.write_bytes(msgspec.json.encode(report))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Commands]:
    def install(codes: Mapping[str, int | None] | None = None) -> Commands:
        fake = Commands(codes)
        monkeypatch.setattr(engine_runs, "run_command", fake)
        return fake

    return install


def engine_part(bundle: Path, work: Path, tiles: Path | None = None, limit: float = 720.0) -> EngineRuns:
    budget = Budget(limit, PARTS, 0.0, lambda: 0.0)
    runs = EngineRuns(bundle=bundle, tiles=tiles, work=work, budget=budget, environment={})
    runs.run()
    return runs


def test_engines_are_compiled_verified_timed_and_evaluated(commands: Any, tmp_path: Path) -> None:
    fake = commands()
    engines = [
        FLOAT,
        RTX,
        on_device("tensorrt-int8", "tensorrt", "int8+float16"),
        on_device("tensorrt-fp16", "tensorrt"),
    ]
    runs = engine_part(make_bundle(tmp_path / "bundle", engines=engines), tmp_path, tmp_path / "tiles")
    assert [words[0] for words in fake.lines] == ["verify", "compile", "verify", "verify", "bench", "parity"]
    assert fake.lines[1][2:] == ["--engine", "tensorrt-int8", "--engine", "tensorrt-fp16"], "it chooses among both"
    assert runs.engines == {
        "rtx-sm86": "int8+float16", "tensorrt-int8": "int8+float16", "tensorrt-fp16": "float16"
    }  # fmt: skip
    assert runs.timings == [TIMING] and {step.outcome for step in runs.steps} == {"passed"}


def test_what_a_gpu_does_not_support_is_no_failure(commands: Any, tmp_path: Path) -> None:
    fake = commands({"rtx-sm86-fp16": 5})
    engines = [FLOAT, on_device("rtx-sm86-fp16", "rtx"), on_device("tensorrt-fp16", "tensorrt")]
    runs = engine_part(make_bundle(tmp_path / "bundle", engines=engines), tmp_path)
    assert [(step.name, step.outcome) for step in runs.steps] == [
        ("compile rtx-sm86-fp16", "not supported"), ("compile tensorrt-fp16", "passed"),
        ("verify tensorrt-fp16", "passed"), ("bench", "passed"), ("parity", "not run"),
    ]  # fmt: skip
    assert runs.steps[0].reason == "exit code 5"
    assert list(runs.engines) == ["tensorrt-fp16"] and "rtx-sm86-fp16" not in fake.lines[-1]


@pytest.mark.parametrize(("code", "outcome"), [(3, "failed"), (1, "failed"), (None, "out of time")])
def test_other_exit_codes_are_recorded(code: int | None, outcome: str, commands: Any, tmp_path: Path) -> None:
    commands({"verify": code})
    runs = engine_part(make_bundle(tmp_path / "bundle", engines=[FLOAT, RTX]), tmp_path)
    assert [(step.name, step.outcome) for step in runs.steps] == [("verify rtx-sm86", outcome)]
    assert not runs.engines and not runs.timings


def test_no_command_starts_after_the_time_of_the_part(commands: Any, tmp_path: Path) -> None:
    fake = commands()
    runs = engine_part(make_bundle(tmp_path / "bundle", engines=[FLOAT, RTX]), tmp_path, limit=0.0)
    assert not fake.lines and [step.outcome for step in runs.steps] == ["out of time"]


def test_a_bundle_that_is_missing_or_has_no_gpu_engine_is_recorded(commands: Any, tmp_path: Path) -> None:
    (missing,) = engine_part(tmp_path / "none", tmp_path).steps
    assert missing.outcome == "not run" and "none" in missing.reason and "carry.sh" in missing.reason
    (cpu_only,) = engine_part(make_bundle(tmp_path / "bundle", engines=[FLOAT]), tmp_path).steps
    assert cpu_only.outcome == "not supported" and "no engine for a GPU" in cpu_only.reason


JUNIT = b"""<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.gpu.test_driver" name="a[real cuda-python]"/>
<testcase classname="tests.gpu.test_driver" name="b"><failure message="assert 1 == 2&#10;more">at</failure></testcase>
<testcase classname="tests.gpu.test_driver" name="c"><error message="no fixture"/></testcase>
<testcase classname="tests.gpu.test_driver" name="d"><skipped message="pycuda has no graphs"/></testcase>
</testsuite></testsuites>"""


def test_pytests_report_is_read() -> None:
    assert read_junit(JUNIT) == DriverTests(
        passed=["test_driver::a[real cuda-python]"],
        failed={"test_driver::b": "assert 1 == 2", "test_driver::c": "no fixture"},
        skipped={"test_driver::d": "pycuda has no graphs"},
    )


@pytest.mark.parametrize(
    ("report", "code", "outcome", "reason"),
    [
        (JUNIT, 1, "failed", "test_driver::b: assert 1 == 2; test_driver::c: no fixture"),
        (JUNIT.replace(b"failure", b"note").replace(b"error", b"note"), 0, "passed", ""),
        (b'<s><testcase name="a"><skipped message="no CUDA"/></testcase></s>', 0, "not supported", "no CUDA"),
        (None, 1, "failed", "No module named pytest"),
        (None, None, "out of time", ""),
    ],
)
def test_the_outcome_of_the_driver_tests(
    report: bytes | None, code: int | None, outcome: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Sequence[str], *_: Any) -> Finished:
        if report:
            (tmp_path / "driver.xml").write_bytes(report)
        return Finished(code, "No module named pytest", 1.0)

    monkeypatch.setattr(driver_tests, "run_command", run)
    step, tests = run_driver_tests(ROOT, tmp_path, Budget(720.0, PARTS, 0.0, lambda: 0.0), {})
    assert (step.outcome, step.reason) == (outcome, reason) and (tests is None) == (report is None)


@pytest.mark.skipif(bool(gpu.DRIVERS), reason="this machine has a GPU")
def test_the_selected_tests_exist_and_are_skipped_without_a_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / source) for source in kit.SOURCES)}
    step, tests = run_driver_tests(ROOT, tmp_path, Budget(720.0, ("driver",), 0.0, lambda: 0.0), environment)
    assert step.outcome == "not supported" and tests is not None
    assert list(tests.skipped) == [
        "test_cuda::test_the_suite_runs_on_this_machines_gpu", "test_engines::test_the_suite_runs_on_this_machines_gpu"
    ]  # fmt: skip


def sample(**changes: Any) -> Record:
    forms: list[tuple[Form, float]] = [("original", 300.0), ("stacked", 100.0)]
    times = [
        NetworkTime(form=form, mode="graph", scope="guidance", batch=4, microseconds=micro, spread=1.01)
        for form, micro in forms
    ]
    agreements = [Agreement(form="stacked", mode="graph", batch=4, equal_pixels=0.99987, largest_difference=0.06)]
    steps = [
        Step(part="network", name="graph, batch 4", outcome="passed", seconds=2.0),
        Step(part="engines", name="compile", outcome="not supported", reason="sm90 | not listed"),
    ]
    values: dict[str, Any] = {
        "created": "2026-11-29T12:00:00+00:00", "commit": "abc+", "limit": 720.0, "seconds": 300.0, "machine": MACHINE,
        "steps": steps, "driver_tests": DriverTests(passed=["a"], failed={"b": "1 != 2"}, skipped={}),
        "engines": {"rtx-sm86": "float16"}, "timings": [TIMING],
        "network": NetworkRuns(precision="float16", tile=256, times=times, agreements=agreements),
    }  # fmt: skip
    return Record(**{**values, **changes})


def test_the_table_holds_every_part() -> None:
    text = markdown(sample())
    for row in (
        "# NVIDIA Test 9000 | x (sm86)",
        "| Engines of a bundle | compile | not supported | 0.0 | sm90 \\| not listed |",
        "1 passed, 1 failed, 0 skipped.",
        "| rtx-sm86 | float16 | 1 | 1 | 1.25 | 2.00 | 800.0 |",
        "| graph | 4 | guidance | 300 | 100 | 3.00 |",
        "| stacked | graph | 4 | 99.9870 | 0.060 |",
    ):
        assert row in text.splitlines()
    assert "NVIDIA driver 580.1, CUDA 13.0" in text and "torch 2.13.0" in text and "commit abc+" in text
    assert text.index("compile") < text.index("graph, batch 4"), "in the order of the parts"


def test_the_table_of_a_run_without_results_is_short() -> None:
    text = markdown(sample(driver_tests=None, engines={}, timings=[], network=None))
    assert "## Steps" in text and "## Engines" not in text and "## Network" not in text and "## Tests" not in text


def test_the_files_are_named_after_the_device_and_can_be_read(tmp_path: Path) -> None:
    json_file, table = kit.write_record(sample(), tmp_path / "new")
    assert json_file.name == "nvidia-test-9000-x.json" and decode(json_file.read_bytes()) == sample()
    assert table.read_text() == markdown(sample())
    changed = json.loads(json_file.read_text()) | {"more": 1}
    with pytest.raises(msgspec.ValidationError, match="more"):
        decode(json.dumps(changed).encode())
    assert file_name("Orin (nvgpu)/integrated") == "orin-nvgpu-integrated"


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build", "540.4.0"),
        ("", ""),
    ],
)
def test_the_version_of_nvidias_driver_is_read(text: str, version: str, tmp_path: Path) -> None:
    file = tmp_path / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert machine._nvidia_driver(tmp_path) == version


def test_without_a_gpu_one_line_and_exit_code_5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> Machine:
        raise UnavailableError("no CUDA device was found")

    monkeypatch.setattr(kit, "find_gpu", none)
    assert kit.main([]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "no NVIDIA GPU: no CUDA device was found" in line and "--cpu" in line


def test_the_reason_of_every_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> Any:
        raise UnavailableError("CUDA: error 35")

    monkeypatch.setattr(machine, "open_driver", no_driver)
    monkeypatch.setattr(machine, "_found_by_torch", lambda: "torch finds no CUDA device")
    with pytest.raises(UnavailableError, match="CUDA: error 35; torch finds no CUDA device"):
        machine.find_gpu()


def test_a_cpus_record_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        kit.main(["--cpu"])
    assert ended.value.code == 2 and "--cpu requires --output" in capsys.readouterr().err


@pytest.mark.parametrize(("outcome", "code"), [("passed", 0), ("not supported", 0), ("out of time", 0), ("failed", 1)])
def test_all_parts_run_and_only_a_failure_is_one(
    outcome: Any, code: int, tmp_path: Path, commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands()
    monkeypatch.setattr(kit, "find_gpu", lambda: MACHINE)
    driver = Step(part="driver", name="tests", outcome=outcome)
    network = Step(part="network", name="PyTorch process", outcome="passed")
    monkeypatch.setattr(kit, "run_driver_tests", lambda *_: (driver, None))
    monkeypatch.setattr(kit, "run_network", lambda *_, **__: (network, sample().network))
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT, RTX])
    assert kit.main(["--bundle", str(bundle), "--output", str(tmp_path / "out")]) == code
    record = decode((tmp_path / "out" / "nvidia-test-9000-x.json").read_bytes())
    assert [step.part for step in record.steps][:2] == ["driver", "engines"] and record.steps[-1] == network
    assert record.engines == {"rtx-sm86": "int8+float16"} and record.limit == 720.0


@pytest.mark.parametrize(
    ("code", "output", "outcome"),
    [
        (0, "", "passed"),
        (1, "ModuleNotFoundError: No module named 'torch'", "not supported"),
        (1, "ValueError: x", "failed"),
        (None, "", "out of time"),
    ],
)
def test_results_of_a_killed_process_are_kept(
    code: int | None, output: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = sample().network

    def run(command: Sequence[str], *_: Any) -> Finished:
        Path(command[4]).write_bytes(msgspec.json.encode(runs))
        return Finished(code, output, 1.0)

    monkeypatch.setattr(kit, "run_command", run)
    budget = Budget(100.0, ("network",), 0.0, lambda: 0.0)
    step, found = kit.run_network(tmp_path, budget, {}, cpu=True)
    assert step.outcome == outcome and found == runs
