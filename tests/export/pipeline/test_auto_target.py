"""Tests which targets ``--target auto``, the default of a build, stands for."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from rich.console import Console

pytest.importorskip("onnx", reason="the compiler needs the [export] extra")

from misgnet_export.pipeline import auto_target
from misgnet_export.pipeline.auto_target import Choice, Machine, choose, choose_here, expand, parse_requested
from misgnet_export.pipeline.request import BuildRequest, check_request
from misgnet_export.pipeline.targets import product_of
from misgnet_runtime import machine
from misgnet_runtime.bundle.targets import Target, parse_target
from misgnet_runtime.errors import InputError, UnavailableError, UsageError
from support.builds import FakeSource, request_of

AVX2 = Machine(architecture="x86_64", flags=frozenset({"avx2"}), openvino="without BF16")
BF16 = replace(AVX2, flags=frozenset({"avx2", "avx512_vnni", "avx512_bf16"}), openvino="with BF16")
AMX = replace(BF16, flags=BF16.flags | {"amx_int8", "amx_bf16"})
ARM = Machine(architecture="aarch64", flags=frozenset({"asimddp", "i8mm"}), openvino="missing")

MACHINES = {
    "AVX2": (AVX2, "cpu openvino", "this processor has no avx512_bf16 or amx_bf16"),
    "VNNI": (replace(AVX2, flags=AVX2.flags | {"avx512_vnni"}), "cpu openvino", "no avx512_bf16 or amx_bf16"),
    "AVX512-BF16 without AMX": (BF16, "cpu openvino-int8-bf16", "this processor has avx512_bf16"),
    "AMX": (AMX, "cpu openvino-int8-bf16", "this processor has avx512_bf16 and amx_bf16"),
    "only AMX": (replace(AMX, flags=frozenset({"amx_bf16"})), "cpu openvino-int8-bf16", "has amx_bf16"),
    "OpenVINO emulates BF16": (replace(AMX, openvino="without BF16"), "cpu openvino", "does not compute in BF16 here"),
    "instruction sets are not reported": (replace(AMX, flags=frozenset()), "cpu openvino", "no avx512_bf16"),
    "OpenVINO is missing": (replace(AMX, openvino="missing"), "cpu", "pip install 'misgnet-export[openvino]'"),
    "aarch64": (ARM, "cpu", "only on x86_64; this is aarch64"),
    "aarch64 with OpenVINO": (replace(ARM, openvino="with BF16"), "cpu", "only on x86_64; this is aarch64"),
}


@pytest.mark.parametrize("case", MACHINES)
def test_auto_is_cpu_and_the_engine_of_openvino_that_suits_the_machine(case: str) -> None:
    host, expected, reason = MACHINES[case]
    found = choose(host)
    assert [target.name for target in found.targets] == expected.split()
    assert reason in found.reason


@pytest.mark.parametrize("case", MACHINES)
def test_chosen_engines_run_on_the_machine_that_they_were_chosen_for(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _, _ = MACHINES[case]
    monkeypatch.setattr(machine, "cpu_flags", lambda: set(host.flags))
    monkeypatch.setattr(machine, "architecture", lambda: host.architecture)
    for target in choose(host).targets:
        product = product_of(target)
        machine.check_processor(product.needs)
        assert product.engine == "onnxruntime" or host.openvino != "missing"
        assert product.float_type == "float32" or host.openvino == "with BF16"


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("auto", "cpu openvino"),
        ("auto auto", "cpu openvino"),
        ("auto cpu", "cpu openvino"),
        ("openvino auto rtx-sm89-fp16", "openvino cpu rtx-sm89-fp16"),
        ("auto rtx-sm86,sm89", "cpu openvino rtx-sm86,sm89-int8 rtx-sm86,sm89-fp16"),
        ("tensorrt-int8 auto tensorrt", "tensorrt-int8 cpu openvino tensorrt-fp16"),
        ("auto openvino-int8-bf16", "cpu openvino openvino-int8-bf16"),
        ("cpu-vnni cpu cpu-vnni", "cpu-vnni cpu"),
        ("", ""),
    ],
)
def test_targets_of_auto_are_merged_with_others(requested: str, expected: str) -> None:
    found = expand(map(parse_requested, requested.split()), choose(AVX2).targets)
    assert [target.name for target in found] == expected.split()


@pytest.mark.parametrize("text", ["auto", " Auto ", "AUTO"])
def test_auto_is_read_without_regard_to_case(text: str) -> None:
    assert parse_requested(text) == "auto"


def test_auto_is_not_an_engine() -> None:
    with pytest.raises(UsageError, match="unknown target 'auto'"):
        parse_target("auto")


def test_request_expands_its_default_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def choose_here() -> Choice:
        calls.append("chosen")
        return choose(BF16)

    monkeypatch.setattr("misgnet_export.pipeline.request.choose_here", choose_here)
    given = request_of("cpu")
    paths = {name: getattr(given, name) for name in ("source", "calib", "evaluation", "output")}
    request = BuildRequest(**paths)
    assert request.targets == request.targets == (Target("cpu"), Target("openvino-int8-bf16"))
    assert request.auto is not None and request.auto.targets == request.targets and calls == ["chosen"]


def test_request_without_auto_does_not_examine_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("misgnet_export.pipeline.request.choose_here", lambda: pytest.fail("examined"))
    request = request_of("rtx-sm86", "cpu", "rtx-sm86")
    assert request.auto is None
    assert request.targets == (Target("rtx-int8", ("sm86",)), Target("rtx-fp16", ("sm86",)), Target("cpu"))


def test_request_with_auto_is_accepted_on_this_machine() -> None:
    request = replace(request_of(), requested=("auto",))
    check_request(request)
    assert request.targets[0] == Target("cpu")


class Core:
    """A stand-in for ``openvino.Core``."""

    def __init__(self, capabilities: list[str] | None) -> None:
        self.capabilities = capabilities

    def get_property(self, device: str, name: str) -> list[str]:
        if self.capabilities is None:
            raise RuntimeError('Device with "CPU" name is not registered in the OpenVINO Runtime')
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self.capabilities


Capabilities = Literal["missing"] | list[str] | None


@pytest.mark.parametrize(
    ("capabilities", "names"),
    [
        (["FP32", "INT8", "BF16"], ["cpu", "openvino-int8-bf16"]),
        (["FP32", "INT8"], ["cpu", "openvino"]),
        (None, ["cpu"]),
        ("missing", ["cpu"]),
    ],
)
def test_openvino_is_asked_what_it_computes_in(
    capabilities: Capabilities, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> Any:
        if capabilities == "missing":
            raise UnavailableError("OpenVINO was requested, but importing openvino failed")
        return SimpleNamespace(Core=lambda: Core(capabilities))

    monkeypatch.setattr(auto_target, "load_openvino", load)
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(machine, "architecture", lambda: "x86_64")
    assert [target.name for target in choose_here().targets] == names


def test_openvino_is_not_imported_on_other_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_target, "load_openvino", lambda: pytest.fail("imported"))
    monkeypatch.setattr(machine, "architecture", lambda: "aarch64")
    assert choose_here().targets == (Target("cpu"),)


def test_missing_openvino_leaves_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    request = replace(request_of(), requested=("auto",))
    check_request(request)
    assert request.targets == (Target("cpu"),)


def test_first_stage_reports_what_auto_stands_for_and_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the build needs the [export] extra")
    from misgnet_export.pipeline import build as pipeline

    def load_sets(*_: object) -> None:
        raise InputError("not loaded")

    monkeypatch.setattr(pipeline, "load_sets", load_sets)
    monkeypatch.setattr(pipeline, "open_source", lambda *_: FakeSource())
    monkeypatch.setattr("misgnet_export.pipeline.request.choose_here", lambda: choose(ARM))
    console = Console(file=io.StringIO(), width=200)
    request = replace(request_of(), requested=("auto",), output=tmp_path / "out")
    with pytest.raises(InputError, match="not loaded"):
        pipeline.build(request, console)
    printed = console.file.getvalue()
    assert "auto stands for cpu (OpenVINO's engines are added only on x86_64; this is aarch64)" in printed
    assert not list(tmp_path.iterdir())
