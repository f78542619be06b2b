"""Tests the definitions of targets, and which targets a build rejects before it starts."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, get_args

import onnxruntime
import pytest

pytest.importorskip("onnx", reason="the compiler needs the [export] extra")

from misgnet_calibration.quantizer.recipes import CPU, OPENVINO, RTX, TENSORRT, TENSORRT_FP16
from misgnet_export.pipeline.compile import make_engines
from misgnet_export.pipeline.request import BuildRequest, check_request
from misgnet_export.pipeline.result import GraphFile
from misgnet_export.pipeline.targets import PRODUCTS, product_of, recipes_of
from misgnet_runtime import machine
from misgnet_runtime.bundle.manifest import EngineEntry, EngineKind
from misgnet_runtime.bundle.targets import Kind, Target, parse_target
from misgnet_runtime.errors import UnavailableError, UsageError
from support.builds import context_of, request_of

NO_NETWORK: Any = None  # none of these targets converts the network
FLOAT_GRAPH = GraphFile(name="float", file="graphs/float.onnx", precision="float32", size=1)


def test_every_target_is_in_the_table_and_every_engine_is_used() -> None:
    built = {variant.kind for kind in get_args(Kind) for variant in Target(kind).variants}
    assert PRODUCTS.keys() == built and len(built) == len(get_args(Kind)) - 4  # four kinds stand for two targets each
    assert {product.engine for product in PRODUCTS.values()} == set(get_args(EngineKind))


def test_precision_combines_graph_and_float_type() -> None:
    names = (
        "cpu-arm", "openvino", "openvino-bf16", "openvino-int8-bf16", "rtx-sm86,sm89-int8", "rtx-sm86-fp16",
        "tensorrt-fp16",         "cuda",
    )  # fmt: skip
    assert [product_of(parse_target(name)).precision for name in names] == [
        "int8", "int8", "bf16", "int8+bf16", "int8+float16", "float16", "float16", "float32",
    ]  # fmt: skip


def test_recipe_shared_by_targets_is_listed_once() -> None:
    names = (
        "openvino-bf16", "rtx-sm86-int8", "cpu", "tensorrt-int8", "rtx-sm89-fp16", "openvino", "openvino-int8-bf16",
    )  # fmt: skip
    assert recipes_of(map(parse_target, names)) == [RTX, CPU, TENSORRT, TENSORRT_FP16, OPENVINO]
    assert recipes_of([Target("openvino-bf16")]) == []


def test_cuda_target_uses_the_float_graph() -> None:
    _, entry = make_engines(context_of(request_of("cuda")), [FLOAT_GRAPH], NO_NETWORK)
    assert (entry.name, entry.kind, entry.file, entry.precision) == (
        "cuda", "onnxruntime-cuda", FLOAT_GRAPH.file, "float32",
    )  # fmt: skip
    assert entry.vendor_version == onnxruntime.__version__


def test_cuda_target_can_be_built_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    check_request(request_of("cuda"))


@pytest.mark.parametrize("target", ["jetson-orin-int8", "jetson-thor-fp16"])
def test_jetson_plan_is_always_compiled_on_the_device(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, library, None)
    request = request_of(target)
    check_request(request)
    entry = deferred(request)
    board = ["sm87"] if "orin" in target else ["sm110"]
    assert (entry.kind, entry.compute_capabilities, entry.platform) == ("tensorrt", board, "linux-aarch64")


@pytest.mark.parametrize(("target", "capabilities"), [("tensorrt-int8", []), ("rtx-sm86,sm89-int8", ["sm86", "sm89"])])
def test_other_plans_are_compiled_on_the_device_on_request(
    target: str, capabilities: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UnavailableError, match=r"or add --on-device and run `misgnet-run compile` on the device"):
        check_request(request_of(target))
    request = replace(request_of(target), on_device=True)
    check_request(request)
    entry = deferred(request)
    assert (entry.compute_capabilities, entry.platform, entry.on_device) == (capabilities, "any", True)
    recipe = "rtx" if target.startswith("rtx") else "tensorrt"
    assert entry.file == entry.graph == f"graphs/int8_{recipe}.onnx" and entry.vendor_version == ""


def deferred(request: BuildRequest) -> EngineEntry:
    graphs = [
        GraphFile(name=recipe.name, file=f"graphs/{name}_{recipe.name}.onnx", precision=recipe.precision, size=1)
        for recipe, name in ((TENSORRT, "int8"), (RTX, "int8"), (TENSORRT_FP16, "float16"))
    ]
    return make_engines(context_of(request), [FLOAT_GRAPH, *graphs], NO_NETWORK)[1]


@pytest.mark.parametrize(
    ("largest", "given", "expected"),
    [(16, None, [1, 4]), (2, None, [1, 2]), (16, (2,), [2]), (16, (1, 4, 16), [1, 4, 16])],
)
def test_plans_have_a_static_profile_for_each_batch(
    largest: int, given: tuple[int, ...] | None, expected: list[int]
) -> None:
    request = replace(request_of("jetson-orin-int8"), max_batch=largest, plan_batches=given)
    entry = deferred(request)
    assert [profile.batches for profile in entry.profiles] == [(batch, batch, batch) for batch in expected]
    assert (entry.batches[0], entry.batches[2]) == (expected[0], expected[-1])


def test_torch_tensorrt_has_one_dynamic_profile() -> None:
    request = replace(request_of("torch-tensorrt"), max_batch=16)
    assert request.plan_options(Target("torch-tensorrt")).profiles == ((1, 4, 16),)


def test_invalid_options_are_rejected() -> None:
    with pytest.raises(UsageError, match="--on-device was given, but no target compiles its plan on the device"):
        check_request(replace(request_of("cpu"), on_device=True))
    with pytest.raises(UsageError, match="--ship-eval is -1"):
        check_request(replace(request_of("cpu"), ship_eval=-1))


def test_int8_for_another_processor_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", set)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    check_request(request_of("cpu", "cpu-vnni", "cpu-arm"))


def test_bf16_is_built_only_where_it_can_be_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph is the float graph, which would pass in ONNX Runtime regardless of BF16."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx2"})
    with pytest.raises(
        UnavailableError, match=r"openvino-bf16 can be evaluated only where it runs: .*avx512_bf16 or amx"
    ):
        check_request(request_of("cpu", "openvino-bf16"))
    check_request(request_of("openvino", "openvino-int8-bf16"))  # ONNX Runtime can be a proxy for INT8
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx512_bf16"})
    check_request(request_of("openvino-bf16"))


@pytest.mark.parametrize("name", ["openvino", "openvino-bf16", "openvino-int8-bf16"])
def test_missing_openvino_is_reported_before_the_build(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UnavailableError, match=r"pip install 'misgnet-export\[openvino\]'"):
        check_request(request_of("cpu", name))
