"""Tests that an engine of ``--target auto`` that misses the gate is left out, and that a requested one is not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from rich.console import Console

pytest.importorskip("onnx", reason="the compiler needs the [export] extra")
pytest.importorskip("torch", reason="the compiler needs the [export] extra")

from misgnet.synthetic import write_split
from misgnet_export.cli import main as cli
from misgnet_export.pipeline import evaluate
from misgnet_export.pipeline.auto_target import Choice
from misgnet_export.pipeline.leave_out import leave_out_float_graph, leave_out_misses, without_misses
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.result import Draft, Evidence, GraphFile
from misgnet_runtime.accuracy.parity import EngineParity
from misgnet_runtime.bundle import EngineEntry, SplitEntry, read_bundle
from misgnet_runtime.bundle.targets import Target, parse_target
from misgnet_runtime.inference.selection import open_detector
from support.builds import FakeSource, context_of, interface_of, request_of
from support.commands import exit_code
from support.paths import DEMO_WEIGHTS
from support.reports import not_run, parity, picture, report_of

GOOD, BAD = [0, 0, 0, 0], [30] * 4  # false alarms of each tile; the limit is 1 point of F1
BF16 = "openvino-int8-bf16"


def results(**wrong: list[int]) -> list[EngineParity]:
    return [parity(found, name.replace("_", "-")) for name, found in wrong.items()]


def names(engines: list[EngineParity]) -> list[str]:
    return [engine.engine for engine in engines]


def test_an_optional_engine_that_misses_is_left_out() -> None:
    report = report_of([*results(cpu_float32=GOOD, cpu=GOOD, openvino=BAD), not_run()])
    found = without_misses(report, {"cpu", "openvino"})
    assert (names(found.engines), names(found.left_out)) == (["cpu-float32", "cpu", "tensorrt"], ["openvino"])
    assert found.passed and not report.passed


def test_cpu_gets_the_result_of_the_float_graph() -> None:
    float32, cpu = results(cpu_float32=GOOD, cpu=BAD)
    found = without_misses(report_of([float32, cpu]), {"cpu"})
    assert found.engines == [float32, structs.replace(float32, engine="cpu")] and found.left_out == [cpu]


@pytest.mark.parametrize(
    "engines",
    [
        results(cpu_float32=GOOD, cpu=GOOD),
        results(cpu_float32=GOOD, cpu=BAD, openvino_bf16=BAD),  # the second was requested by name
        results(cpu_float32=BAD, cpu=BAD),  # nothing passes
    ],
    ids=["none misses", "a requested one misses too", "the float graph misses"],
)
def test_nothing_is_left_out(engines: list[EngineParity]) -> None:
    report = report_of(engines)
    assert without_misses(report, {"cpu", "openvino"}) == report


PAIR = [{"rtx-sm86-int8", "rtx-sm86-fp16"}]


def test_one_precision_of_a_gpu_is_left_out_if_the_other_passes() -> None:
    report = report_of(results(cpu_float32=GOOD, rtx_sm86_int8=BAD, rtx_sm86_fp16=GOOD))
    found = without_misses(report, (), PAIR)
    assert (names(found.engines), names(found.left_out)) == (["cpu-float32", "rtx-sm86-fp16"], ["rtx-sm86-int8"])
    assert found.passed and not without_misses(report, ()).passed


def test_a_gpu_needs_one_precision_that_passes() -> None:
    report = report_of(results(cpu_float32=GOOD, rtx_sm86_int8=BAD, rtx_sm86_fp16=BAD))
    assert without_misses(report, (), PAIR) == report
    # An engine that was not run shows nothing, so the other one is needed.
    unproven = report_of([*results(cpu_float32=GOOD, rtx_sm86_int8=BAD), not_run("rtx-sm86-fp16")])
    assert without_misses(unproven, (), PAIR) == unproven


def test_a_precision_that_is_requested_by_its_suffix_must_pass() -> None:
    assert request_of("rtx-sm86").pairs == [parse_target("rtx-sm86").variants]
    assert request_of("rtx-sm86-int8", "cpu").pairs == []
    assert request_of("rtx-sm86", "rtx-sm86-int8").pairs == []


def test_only_targets_that_no_option_names_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Choice((Target("cpu"), Target("openvino")), "")
    monkeypatch.setattr("misgnet_export.pipeline.request.choose_here", lambda: chosen)
    assert replace(request_of(), requested=("auto",)).only_by_auto == {Target("cpu"), Target("openvino")}
    assert replace(request_of(), requested=("auto", Target("cpu"))).only_by_auto == {Target("openvino")}
    assert replace(request_of(), requested=(Target("cpu"), parse_target("rtx-sm86"))).only_by_auto == set()


def split(name: str) -> SplitEntry:
    return SplitEntry(*[f"graphs/{name}_{part}.onnx" for part in ("encoder", "head")] * 2)


def graph(name: str) -> GraphFile:
    return GraphFile(name=name, file=f"graphs/{name}.onnx", precision="int8", size=1, split=split(name))


def entry(name: str, made_of: str, kind: Any = "onnxruntime", parts: SplitEntry | None = None) -> EngineEntry:
    file = f"graphs/{made_of}.onnx"
    return EngineEntry(name, kind, file, file, "int8", "1", split=parts)


GRAPHS = [replace(graph("float"), precision="float32"), graph("cpu"), graph("openvino")]
ENTRIES = [
    entry("cpu-float32", "float", parts=split("float")),
    entry("cpu", "cpu", parts=split("cpu")),
    entry("openvino", "openvino", "openvino", parts=split("openvino")),
    entry(BF16, "openvino", "openvino"),
]
Drafted = Callable[..., tuple[Draft, Draft, str]]


@pytest.fixture
def leave_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drafted:
    """Applies the stage to a bundle of the engines ENTRIES, of which some miss."""

    def run(*missed: str, float_graph: bool = True) -> tuple[Draft, Draft, str]:
        (tmp_path / "graphs").mkdir(exist_ok=True)
        for item in GRAPHS:
            for file in {item.file, *structs.astuple(item.split)}:
                (tmp_path / file).touch()
        report = report_of([parity(BAD if one.name in missed else GOOD, one.name) for one in ENTRIES])
        pictures = {one.name: [picture()] for one in ENTRIES}
        draft = Draft(
            source=FakeSource(), interface=interface_of(request_of()),
            sets=None,  # type: ignore[arg-type]
            graphs=list(GRAPHS), engines=list(ENTRIES), evidence=Evidence(report, pictures),
        )  # fmt: skip
        chosen = Choice(tuple(Target(one.name) for one in ENTRIES[1:]), "")  # type: ignore[arg-type]
        monkeypatch.setattr("misgnet_export.pipeline.request.choose_here", lambda: chosen)
        text = io.StringIO()
        log = StageLog(Console(file=text, width=500))
        context = context_of(replace(request_of(), requested=("auto",), float_graph=float_graph), tmp_path, log=log)
        return draft, leave_out_misses(context, draft), text.getvalue()

    return run


def files(root: Path) -> set[str]:
    return {path.stem for path in (root / "graphs").iterdir()}


def test_float_graph_takes_the_place_of_cpu(
    leave_out: Drafted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draft, found, printed = leave_out("cpu")
    assert [one.name for one in found.engines] == ["cpu-float32", "cpu", "openvino", BF16]
    cpu = found.engines[1]
    assert (cpu.precision, cpu.kind, cpu.file, cpu.split) == (
        "float32", "onnxruntime", "graphs/float.onnx", split("float"),
    )  # fmt: skip
    assert files(tmp_path) == {f"{name}{part}" for name in ("float", "openvino") for part in ("", "_encoder", "_head")}
    assert (found.graphs, found.dropped) == ([draft.graphs[0], draft.graphs[2]], [draft.graphs[1]])
    assert list(found.evidence.pictures) == ["cpu-float32", "cpu (left out)", "openvino", BF16]
    assert "leave out engines" in printed
    assert "cpu in int8 is left out of the bundle: F1 drop" in printed
    assert "cpu opens the float graph instead" in printed


def test_graph_of_another_engine_is_kept(leave_out: Drafted, tmp_path: Path) -> None:
    draft, found, _ = leave_out("openvino")
    assert [one.name for one in found.engines] == ["cpu-float32", "cpu", BF16]
    assert found.graphs == draft.graphs and not found.dropped
    assert "openvino" in files(tmp_path)


def test_graph_that_nothing_uses_is_removed_with_its_parts(leave_out: Drafted, tmp_path: Path) -> None:
    _, found, _ = leave_out("openvino", BF16)
    assert [one.name for one in found.engines] == ["cpu-float32", "cpu"]
    assert files(tmp_path) == {f"{name}{part}" for name in ("float", "cpu") for part in ("", "_encoder", "_head")}
    assert [one.name for one in found.dropped] == ["openvino"]


def test_nothing_changes_if_no_engine_misses(leave_out: Drafted, tmp_path: Path) -> None:
    draft, found, printed = leave_out()
    assert found is draft and not printed and len(files(tmp_path)) == 9


def test_float_graph_is_left_out_with_its_engine_on_request(leave_out: Drafted, tmp_path: Path) -> None:
    draft, _, _ = leave_out()
    kept = leave_out_float_graph(context_of(request_of(), tmp_path), draft)
    assert kept is draft
    found = leave_out_float_graph(context_of(request_of(float_graph=False), tmp_path), draft)
    assert [one.name for one in found.engines] == ["cpu", "openvino", BF16]
    assert (found.graphs, found.dropped) == (draft.graphs[1:], draft.graphs[:1])
    assert list(found.evidence.pictures) == ["cpu", "openvino", BF16]
    assert found.evidence.parity == draft.evidence.parity
    assert files(tmp_path) == {f"{name}{part}" for name in ("cpu", "openvino") for part in ("", "_encoder", "_head")}


def test_without_the_float_graph_cpu_must_pass(leave_out: Drafted) -> None:
    _, found, printed = leave_out("cpu", float_graph=False)
    assert not found.evidence.parity.passed and not printed
    _, found, _ = leave_out("openvino", float_graph=False)
    assert found.evidence.parity.passed and [one.name for one in found.engines] == ["cpu-float32", "cpu", BF16]


@pytest.mark.slow
def test_build_whose_int8_misses_has_a_float_engine_for_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = evaluate.evaluate_tiles

    def inverted(name: str, predict: Any, *more: Any, **others: Any) -> Any:
        return real(name, (lambda *pair: 1 - predict(*pair)) if name == "cpu" else predict, *more, **others)

    monkeypatch.setattr(evaluate, "evaluate_tiles", inverted)
    monkeypatch.setattr("misgnet_export.pipeline.request.choose_here", lambda: Choice((Target("cpu"),), "a test"))
    for seed, name in enumerate(("train", "test")):
        write_split(tmp_path / name, 2, seed, 128)
    out = tmp_path / "out"
    words = ["--calib", tmp_path / "train", "--eval", tmp_path / "test", "-o", out, "--split"]
    words += ["--tile", 32, "--max-batch", 2, "--calib-tiles", 16, "--observer", "max", "--repair", "never"]
    code = exit_code(cli.main, "misgnet-export", "build", DEMO_WEIGHTS, *words)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "cpu in int8 is left out of the bundle: F1 ratio" in " ".join(printed.err.split())
    bundle = read_bundle(out)
    assert [(e.name, e.precision) for e in bundle.manifest.engines] == [("cpu-float32", "float32"), ("cpu", "float32")]
    assert not bundle.manifest.quantization and not list(out.rglob("*int8*.onnx"))
    assert (bundle.manifest.min_f1_ratio, bundle.manifest.max_f1_drop) == (0.999, None)
    metrics = bundle.manifest.metrics
    assert [e["engine"] for e in metrics["engines"]] == ["cpu-float32", "cpu"]
    (left_out,) = metrics["left_out"]
    assert (left_out["engine"], left_out["precision"], left_out["verdict"]["passed"]) == ("cpu", "int8", False)
    assert {t["engine"] for t in bundle.manifest.latency["timings"]} == {"cpu-float32", "cpu"}
    evidence = json.loads((out / "evidence" / "parity.json").read_bytes())
    assert len(evidence["left_out"][0]["tiles"]) == evidence["tiles"]
    assert "left out of the bundle: cpu (int8)" in (out / "evidence" / "report.html").read_text(encoding="utf-8")
    with open_detector(bundle, "cpu") as opened:
        tiles = np.zeros((1, 32, 32, 3), np.uint8)
        assert opened.entry.precision == "float32" and opened.detector.probability(tiles, tiles).shape == (1, 32, 32)
