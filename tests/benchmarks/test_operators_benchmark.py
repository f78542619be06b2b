"""Tests of the operator benchmark: engine profiles, summed by operator."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the benchmarks need the [export] extra")

import onnx

from benchmarks import operators, rewrites
from benchmarks.operators import PROFILERS, WARM_UP, Operator, Profile, Report, feeds_of, lines, profile, summed
from benchmarks.rewrites import OPENERS, Stage, graphs, measure
from misgnet_export.graph.algebra import REWRITES
from misgnet_runtime.bundle import Interface
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.engines.openvino import computes_bf16
from misgnet_runtime.errors import UnavailableError
from support.bundles import make_bundle
from support.commands import exit_code
from support.paths import DEMO_WEIGHTS


def test_the_shortest_time_of_each_node_counts() -> None:
    calls = [
        [("1", "Conv", "a", 1.0), ("2", "Conv", "a", 5.0), ("3", "Add", "b", 2.0)],
        [("1", "Conv", "a", 9.0), ("2", "Conv", "a", 4.0), ("3", "Add", "b", 1.0), ("4", "Add", "b", 4.0)],
    ]
    assert summed(calls) == [Operator("Conv", "a", 2, 5.0, 0.5), Operator("Add", "b", 2, 5.0, 0.5)]


@pytest.mark.parametrize("kind", PROFILERS)
def test_each_engine_reports_its_operators(kind: str, tmp_path: Path) -> None:
    if kind.startswith("openvino"):
        openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
        if kind.endswith("bf16") and not computes_bf16(openvino.Core()):
            pytest.skip("this processor does not compute in BF16")
    bundle = read_bundle(make_bundle(tmp_path / "bundle"))
    graph = bundle.file(bundle.manifest.file("float graph").path)
    found = profile("tiny", kind, graph, feeds_of(bundle, 4))
    assert not found.failed and found.operators and found.ms > 0
    assert sum(o.share for o in found.operators) == pytest.approx(1.0)
    assert all(o.nodes < 40 for o in found.operators), "nodes of one call, not of all calls"


def test_warm_up_calls_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast_first = lambda _, feeds: [[("1", "Conv", "", 0.1 if i < WARM_UP else 1.0)] for i in range(len(feeds))]  # noqa: E731
    monkeypatch.setitem(PROFILERS, "onnxruntime", ("ONNX Runtime", fast_first))
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
    assert exit_code(operators.main, "operators", root, "--weights", out) == 2, "not the weights of the bundle"
    assert exit_code(operators.main, "operators", tmp_path / "none") == 4


def test_stages_are_compared_with_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    bundle = read_bundle(make_bundle(tmp_path / "bundle"))
    model = onnx.load(bundle.file(bundle.manifest.file("float graph").path))

    def missing(_: bytes) -> None:
        raise UnavailableError("no OpenVINO here")

    monkeypatch.setattr(rewrites, "OPENERS", {"ONNX Runtime": OPENERS["ONNX Runtime"], "OpenVINO f32": missing})
    found = measure([("first", model), ("second", model)], feeds_of(bundle, 1), 3)
    assert [(stage.name, stage.nodes) for stage in found] == [(n, len(model.graph.node)) for n in ("first", "second")]
    assert all(stage.ms.keys() == {"ONNX Runtime"} and stage.ms["ONNX Runtime"] > 0 for stage in found)
    assert found[0].ratio == {"ONNX Runtime": 1.0} and found[1].ratio["ONNX Runtime"] > 0
    assert "not measured in OpenVINO f32: no OpenVINO here" in capsys.readouterr().err


def test_the_table_of_rewrites_shows_what_each_adds() -> None:
    stages = [Stage("straight export", 9, {"ONNX Runtime": 4.0}, {"ONNX Runtime": 1.0}),
              Stage("merge classes", 7, {"ONNX Runtime": 3.0}, {"ONNX Runtime": 0.76})]  # fmt: skip
    assert rewrites.lines(stages) == [
        "| graph with | nodes | ONNX Runtime, ms |", "|---|---|---|",
        "| straight export | 9 | 4.0 |", "| + merge classes | 7 | 3.0 (0.760) |",
    ]  # fmt: skip


@pytest.mark.slow
def test_every_rewrite_is_a_stage_of_its_own() -> None:
    found = list(graphs(DEMO_WEIGHTS, Interface(64, 8)))
    assert [name for name, _ in found][:2] == ["straight export", "stacked guidance"]
    assert len(found) == 2 + len(REWRITES)
    texts = [model.SerializeToString() for _, model in found]
    assert len(set(texts)) == len(found), "every rewrite changes the graph"
    nodes = [len(model.graph.node) for _, model in found]
    assert nodes[0] > nodes[1] > nodes[-1]
