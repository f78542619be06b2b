"""Tests that compile with the real TensorRT for RTX, which does not need a GPU to compile."""

from __future__ import annotations

import builtins
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from misgnet_runtime.engines.tensorrt import Plan, PlanOptions, compile_plan, load_vendor
from misgnet_runtime.engines.tensorrt.bindings import known_capabilities, parse_version
from misgnet_runtime.engines.tensorrt.builder import Build
from misgnet_runtime.engines.tensorrt.engine import open_plan
from misgnet_runtime.engines.tensorrt.progress import Phases
from misgnet_runtime.errors import InputError, UnavailableError, UsageError
from support.fake_cuda import FakeDriver

onnx = pytest.importorskip("onnx", reason="the tiny graphs are made with onnx")
pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

RTX = PlanOptions(vendor="rtx", compute_capabilities=("sm86", "sm89"))
HALF = onnx.TensorProto.FLOAT16


def quantized(name: str, weight: NDArray[np.int8], axis: int) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    """Returns Q/DQ of the tensor ``{name}_in`` and DQ of an INT8 weight, in symmetric INT8 with FP16 scales."""
    node = onnx.helper.make_node
    scale, zero = f"{name}_scale", f"{name}_zero"
    nodes = [
        node("QuantizeLinear", [f"{name}_in", scale, zero], [f"{name}_q"], f"{name}_quantize"),
        node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_x"], f"{name}_dequantize"),
        node("DequantizeLinear", [f"{name}_w8", f"{name}_ws"], [f"{name}_w"], f"{name}_weight", axis=axis),
    ]
    values = {
        scale: np.array(0.05, np.float16),
        zero: np.array(0, np.int8),
        f"{name}_w8": weight,
        f"{name}_ws": np.full(weight.shape[axis], 0.01, np.float16),
    }
    return nodes, values


def tiny_graph(*, quantized_bias: bool = False, zero_point: int = 0, batch: str | int = "batch") -> bytes:
    """Returns a graph: UINT8 NHWC, cast and transposed, an INT8 convolution and matrix product, FP16 output."""
    rng = np.random.default_rng(0)
    node = onnx.helper.make_node
    conv, values = quantized("conv", rng.integers(-127, 128, (16, 3, 3, 3), np.int8), axis=0)
    product, more = quantized("product", rng.integers(-127, 128, (16, 32), np.int8), axis=1)
    values |= more
    values["conv_zero"] = np.array(zero_point, np.int8)
    values["bias"] = np.zeros(16, np.float16)
    bias_nodes = []
    if quantized_bias:
        values |= {"bias8": np.zeros(16, np.int32), "bias_scale": np.full(16, 1e-3, np.float16)}
        del values["bias"]
        inputs = ["bias8", "bias_scale"]
        bias_nodes = [node("DequantizeLinear", inputs, ["bias"], "bias_dequantize", axis=0)]
    nodes = [
        node("Cast", ["image"], ["real"], "cast", to=HALF),
        node("Transpose", ["real"], ["conv_in"], "to_nchw", perm=[0, 3, 1, 2]),
        *conv,
        *bias_nodes,
        node("Conv", ["conv_x", "conv_w", "bias"], ["features"], "conv", pads=[1, 1, 1, 1]),
        node("Transpose", ["features"], ["product_in"], "to_nhwc", perm=[0, 2, 3, 1]),
        *product,
        node("MatMul", ["product_x", "product_w"], ["result"], "product"),
    ]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [batch, 16, 16, 3])
    result = onnx.helper.make_tensor_value_info("result", HALF, [batch, 16, 16, 32])
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = onnx.helper.make_graph(nodes, "tiny", [image], [result], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_plan(tiny_graph(), RTX)


def test_one_plan_is_compiled_for_two_capabilities(plan: Plan) -> None:
    assert len(plan.data) > 10_000
    assert plan.compatibility.compute_capabilities == ("sm86", "sm89")
    assert parse_version(plan.compatibility.vendor_version) >= (1, 2)
    assert (plan.quantize_layers, plan.dequantize_layers) == (2, 4)
    assert plan.network_layers > 10
    assert 0 < plan.seconds < 600
    assert plan.notes == ()


def test_kernels_of_each_profile_are_read_from_the_builders_log() -> None:
    options = PlanOptions(vendor="rtx", compute_capabilities=("sm86",), profiles=((1, 1, 1), (4, 4, 4)))
    layers = compile_plan(tiny_graph(), options).layers
    assert layers.note == ""
    one, four = layers.profiles
    image, result = 16 * 16 * 3, 2 * 16 * 16 * 32
    macs = 16 * 16 * (16 * 4 * 3 * 3 + 16 * 32)  # the builder pads 3 channels to 4
    for profile, batch in ((one, 1), (four, 4)):
        total = profile.total()
        assert 2 <= total.kernels <= 12
        assert total.macs == batch * macs
        assert total.bytes_moved and total.bytes_moved > batch * (image + result)
        assert profile.context_bytes is not None


def test_a_dynamic_profile_has_kernels_of_unknown_size(plan: Plan) -> None:
    (profile,) = plan.layers.profiles
    assert profile.total().kernels >= 2
    assert profile.total().bytes_moved is None


def test_capabilities_change_the_plan(plan: Plan) -> None:
    one = compile_plan(tiny_graph(), PlanOptions(vendor="rtx", compute_capabilities=("sm75",)))
    assert one.compatibility.compute_capabilities == ("sm75",)
    assert one.data != plan.data


def test_plan_is_compiled_with_all_options(plan: Plan) -> None:
    options = PlanOptions(
        vendor="rtx",
        compute_capabilities=("sm86",),
        profiles=((2, 2, 2), (4, 4, 4)),
        workspace_bytes=1 << 28,
        optimization_level=1,
    )
    assert compile_plan(tiny_graph(), options).data


def test_float32_products_are_not_rounded_to_tf32() -> None:
    module = load_vendor("rtx")
    build = Build(module, RTX)
    assert build._config.get_flag(module.BuilderFlag.TF32), "it is on by default"
    build.configure()
    assert not build._config.get_flag(module.BuilderFlag.TF32)


def test_rtx_does_not_use_a_timing_cache(tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"garbage")
    plan = compile_plan(tiny_graph(), RTX, timing_cache=cache)
    assert plan.notes == ("timing cache unused: TensorRT for RTX does not support one",)
    assert cache.read_bytes() == b"garbage"


@pytest.mark.parametrize(
    ("graph", "messages"),
    [
        (tiny_graph(quantized_bias=True), ("DequantizeLinear 'bias_dequantize'", "input has type Int32")),
        (tiny_graph(zero_point=3), ("QuantizeLinear 'conv_quantize'", "Non-zero zero point")),
        (tiny_graph(batch=2), ("graph input 'image' has shape (2, 16, 16, 3)", "must be dynamic")),
        (b"not a graph", ("rejects the graph", "Failed to parse the ONNX model")),
        (b"", ("0 bytes", "no output")),
    ],
    ids=["int32 bias", "asymmetric", "static batch", "not onnx", "empty"],
)
def test_a_rejected_graph_is_an_input_error(graph: bytes, messages: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        compile_plan(graph, RTX)
    found = str(caught.value)
    assert all(message in found for message in messages)
    assert "\n" not in found and "cudaError" not in found and len(found) < 600
    assert caught.value.exit_code == 4


def test_an_unknown_capability_is_reported_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"does not compile for sm31; it supports .*sm86, sm89") as caught:
        compile_plan(tiny_graph(), PlanOptions(vendor="rtx", compute_capabilities=("sm86", "sm31")))
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="'86' is not a compute capability"):
        compile_plan(tiny_graph(), PlanOptions(vendor="rtx", compute_capabilities=("86",)))


def test_the_capabilities_of_the_module_ascend() -> None:
    known = known_capabilities(load_vendor("rtx"))
    assert [name for name in known if name in ("sm75", "sm86", "sm89", "sm120")] == [
        "sm75",
        "sm86",
        "sm89",
        "sm120",
    ]


def test_compiling_needs_a_gpu_if_no_capabilities_are_given() -> None:
    with pytest.raises(UnavailableError, match=r"no CUDA device.*--target rtx-sm86"):
        compile_plan(tiny_graph(), PlanOptions(vendor="rtx"), driver=FakeDriver(devices=0))
    with pytest.raises(UnavailableError, match=r"does not compile for Fake GPU \(sm70\); it supports sm75"):
        compile_plan(tiny_graph(), PlanOptions(vendor="rtx"), driver=FakeDriver("sm70"))


def test_a_damaged_plan_is_refused_with_the_reason(plan: Plan) -> None:
    damaged = bytes(len(plan.data))
    with pytest.raises(UnavailableError, match="cannot open the plan on Fake GPU"):
        open_plan(damaged, "rtx", FakeDriver("sm86"))


def test_progress_is_reported_in_order() -> None:
    steps: list[tuple[str, int, int]] = []
    compile_plan(tiny_graph(), RTX, progress=lambda *step: steps.append(step))
    assert len({phase for phase, _, _ in steps}) > 3
    assert all(0 <= done <= total for _, done, total in steps)
    first = [done for phase, done, _ in steps if phase == steps[0][0]]
    assert first == sorted(first) and first[-1] > 0


def test_the_share_never_decreases() -> None:
    shares: list[float] = []
    compile_plan(tiny_graph(), RTX, share=shares.append)
    assert len(set(shares)) > 10 and shares == sorted(shares) and shares[0] >= 0 and 0.8 < shares[-1] <= 1


def test_a_phase_counts_as_part_of_its_parents_step() -> None:
    phases = Phases()
    phases.start("whole", None, 4)
    phases.step("whole", 1)
    phases.start("part", "whole", 2)
    phases.start("inner", "part", 10)
    phases.step("inner", 5)
    assert phases.share() == pytest.approx((1 + (0.5 / 2)) / 4)
    phases.finish("inner")
    phases.finish("part")  # before its parent's step ends: the reported share must not decrease
    assert phases.share() == pytest.approx((1 + (0.5 / 2)) / 4)
    phases.step("whole", 4)
    assert phases.share() == 1
    phases.finish("whole")
    phases.start("whole", None, 0)
    assert phases.share() == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug in the display")])
def test_an_exception_of_the_progress_callback_is_raised_unchanged(
    error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def stop(phase: str, done: int, total: int) -> None:
        calls.append(phase)
        if len(calls) == 5:
            raise error

    with pytest.raises(type(error)) as caught:
        compile_plan(tiny_graph(), RTX, progress=stop)
    assert caught.value is error
    assert len(calls) == 5
    assert capfd.readouterr() == ("", "")  # native code prints exceptions that pass through it


def test_ctrl_c_stops_the_build_and_the_handler_is_restored() -> None:
    # A shell that starts the tests in the background makes them ignore Ctrl-C.
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _press_ctrl_c_while_compiling()
    finally:
        signal.signal(signal.SIGINT, outer)


def _press_ctrl_c_while_compiling() -> None:
    before = signal.getsignal(signal.SIGINT)
    steps = []

    def press(phase: str, done: int, total: int) -> None:
        steps.append(phase)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        compile_plan(tiny_graph(), RTX, progress=press)
    assert len(steps) < 10
    assert signal.getsignal(signal.SIGINT) is before


def test_a_build_restores_the_signal_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    compile_plan(tiny_graph(), RTX)
    assert signal.getsignal(signal.SIGINT) is before


def test_build_runs_outside_the_main_thread() -> None:
    plans: list[Plan] = []
    thread = threading.Thread(target=lambda: plans.append(compile_plan(tiny_graph(), RTX)))
    thread.start()
    thread.join()
    assert len(plans) == 1


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "print", lambda *args, **kwargs: pytest.fail("printed"))
    compile_plan(tiny_graph(), RTX)
    assert capfd.readouterr() == ("", "")
