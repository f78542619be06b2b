"""Tests of the operator benchmark: engine profiles, summed by operator."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the benchmarks need the [export] extra")

from benchmarks import operators
from benchmarks.operators import PROFILERS, WARM_UP, Operator, Profile, Report, feeds_of, lines, profile, summed
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.errors import UnavailableError
from support.bundles import make_bundle
from support.commands import exit_code


def test_times_are_summed_per_call_before_taking_the_median() -> None:
    calls = [
        [("Conv", "a", 1.0), ("Conv", "a", 3.0), ("Add", "b", 1.0)],
        [("Conv", "a", 2.0), ("Conv", "a", 4.0), ("Add", "b", 2.0)],
        [("Conv", "a", 9.0), ("Conv", "a", 9.0), ("Add", "b", 3.0)],
    ]
    assert summed(calls) == [Operator("Conv", "a", 2, 6.0, 0.75), Operator("Add", "b", 1, 2.0, 0.25)]


@pytest.mark.parametrize("kind", PROFILERS)
def test_each_engine_reports_its_operators(kind: str, tmp_path: Path) -> None:
    if kind == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    bundle = read_bundle(make_bundle(tmp_path / "bundle"))
    graph = bundle.file(bundle.manifest.file("float graph").path)
    found = profile("tiny", kind, graph, feeds_of(bundle, 4))
    assert not found.failed and found.operators and found.ms > 0
    assert sum(o.share for o in found.operators) == pytest.approx(1.0)
    assert all(o.nodes < 40 for o in found.operators), "nodes of one call, not of all calls"


def test_warm_up_calls_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_first = lambda _, feeds: [[("Conv", "", 1000.0 if i < WARM_UP else 1.0)] for i in range(len(feeds))]  # noqa: E731
    monkeypatch.setitem(PROFILERS, "onnxruntime", ("ONNX Runtime", slow_first))
    assert profile("g", "onnxruntime", tmp_path, [{}] * (WARM_UP + 2)).ms == 1.0


def test_a_missing_engine_is_listed_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise UnavailableError("OpenVINO was requested, but importing openvino failed")

    monkeypatch.setitem(PROFILERS, "openvino", ("OpenVINO", missing))
    found = profile("g", "openvino", tmp_path, [])
    machine = {"features": [], "processor": "P", "cores": 2, "memory_gib": 1.0}
    output = lines(
        Report(machine, {}, 0.1, 3, [found, Profile("h", "ONNX Runtime", 2.0, [Operator("Conv", "", 1, 2.0, 1.0)])])
    )
    assert "**g** in OpenVINO: OpenVINO was requested, but importing openvino failed" in output
    assert "| Conv |  | 1 | 2.00 | 100.0% |" in output


def test_the_command_prints_and_writes_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    root, out = make_bundle(tmp_path / "bundle"), tmp_path / "profile.json"
    monkeypatch.setattr(sys, "argv", ["operators", str(root), "--calls", "2", "--json", str(out)])
    operators.main()
    assert out.is_file() and "**float graph** in ONNX Runtime" in capsys.readouterr().out
    assert exit_code(operators.main, "operators", tmp_path / "none") == 4
