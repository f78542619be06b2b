"""Tests the measurements of the network on the CPU, with small images and few rounds."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="the kit's third part needs PyTorch")

from gpu import network_runs
from gpu.network_runs import Device, Measurement, demo_images, scopes, this_device, timed
from gpu.record import NetworkRuns
from misgnet import load_network
from misgnet_export.graph.half_network import HalfNetwork
from support.paths import DEMO_WEIGHTS

SMALL = Device(name="cpu", dtype=torch.float32, tile=64, rounds=2, batches=(1, 2), modes=("eager",))


@pytest.fixture(scope="module")
def network() -> Any:
    return load_network(DEMO_WEIGHTS).eval()


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_runs, "ROUND_SECONDS", 0.001)


def measured(network: Any, device: Device, output: Path, seconds: float = 600.0) -> NetworkRuns:
    with torch.no_grad():
        return Measurement(network, device, time.monotonic() + seconds, output).run()


def test_both_forms_are_timed_whole_and_by_part_and_agree(network: Any, tmp_path: Path) -> None:
    runs = measured(network, SMALL, tmp_path / "runs.json")
    names = {(one.form, one.scope, one.batch) for one in runs.times}
    assert names == set(
        itertools.product(("original", "stacked"), ("whole", "backbone", "guidance", "decoder"), (1, 2))
    )
    assert all(one.microseconds > 0 and one.spread >= 1 for one in runs.times)
    assert [(one.form, one.batch) for one in runs.agreements] == [
        (form, batch) for batch in (1, 2) for form in ("original", "stacked")
    ]
    assert all(one.equal_pixels >= 0.9999 and one.largest_difference < 1e-2 for one in runs.agreements)
    assert [(step.name, step.outcome) for step in runs.steps] == [
        ("eager, batch 1", "passed"),
        ("eager, batch 2", "passed"),
    ]
    assert msgspec.json.decode((tmp_path / "runs.json").read_bytes(), type=NetworkRuns) == runs


def test_the_parts_compute_the_network(network: Any) -> None:
    half = HalfNetwork(network, torch.float32)
    images = demo_images(1, SMALL)
    with torch.no_grad():
        calls = scopes(half, images)
        assert torch.equal(calls["whole"](), calls["decoder"]())
        assert [x.shape[0] for x in calls["backbone"]()] == [2, 2, 2]
        assert [x.shape[0] for x in calls["guidance"]()] == [1, 1, 1]


def test_a_mode_that_fails_leaves_the_others(network: Any, tmp_path: Path) -> None:
    """There are no CUDA graphs on the CPU."""
    device = dataclasses.replace(SMALL, batches=(1,), modes=("graph", "eager"))
    runs = measured(network, device, tmp_path / "runs.json")
    assert [step.outcome for step in runs.steps] == ["failed", "passed"]
    assert runs.steps[0].reason and {one.mode for one in runs.times} == {"eager"}


def test_only_the_whole_network_is_compiled(network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is imitated: compiling takes minutes here."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    runs = measured(network, dataclasses.replace(SMALL, batches=(1,), modes=("compile",)), tmp_path / "runs.json")
    assert [(one.form, one.mode, one.scope) for one in runs.times] == [
        ("original", "compile", "whole"), ("stacked", "compile", "whole")
    ]  # fmt: skip
    assert [step.name for step in runs.steps] == ["compile, batch 1"] and len(runs.agreements) == 2


def test_nothing_starts_after_the_time(network: Any, tmp_path: Path) -> None:
    runs = measured(network, SMALL, tmp_path / "runs.json", seconds=-1)
    assert [step.outcome for step in runs.steps] == ["out of time"] * 2 and not runs.times
    assert (tmp_path / "runs.json").is_file()


def test_a_float16_network_runs_on_the_cpu_too(network: Any) -> None:
    with torch.no_grad():
        found = scopes(HalfNetwork(network), demo_images(1, SMALL))["whole"]()
    assert found.dtype == torch.float32 and found.shape == (1, 2, 64, 64)


def test_calls_are_timed_in_alternating_rounds() -> None:
    """The clock is that of a device whose calls take 1 and 2 ms."""
    order: list[str] = []

    class Fake(Device):
        def time(self, call: Any, count: int) -> float:
            order.append(call())
            return count * {"a": 1e-3, "b": 2e-3}[call()]

    device = Fake(name="cpu", dtype=torch.float32, tile=64, rounds=3, batches=(), modes=())
    found = timed({"a": lambda: "a", "b": lambda: "b"}, device)
    assert found == {"a": (pytest.approx(1000), pytest.approx(1)), "b": (pytest.approx(2000), pytest.approx(1))}
    assert order == ["a", "a", "b", "b", "a", "b", "a", "b", "a", "b"]


def test_a_gpu_has_all_modes_in_float16_and_a_cpu_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = this_device(cpu=False)
    assert (found.dtype, found.batches, found.modes) == (torch.float16, (1, 4, 16, 64), network_runs.MODES)
    for flags, dtype in (({"avx512_bf16"}, torch.bfloat16), ({"avx2"}, torch.float32)):
        monkeypatch.setattr(network_runs, "cpu_flags", lambda flags=flags: flags)
        device = this_device(cpu=True)
        assert device.dtype == dtype and not any("graph" in mode for mode in device.modes)


def test_images_repeat_when_the_batch_is_large() -> None:
    before, after = demo_images(10, SMALL)
    assert before.shape == (10, 3, 64, 64) and torch.equal(before[0], before[8]) and not torch.equal(before, after)
