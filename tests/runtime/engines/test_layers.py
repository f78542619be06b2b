"""Tests the kernels of a plan: both parsers, bytes, MACs, parts, profiles, and lists that are not understood."""

from __future__ import annotations

import json
from typing import Any

import pytest

from misgnet_runtime.engines.tensorrt.layer_list import layers_of_inspector, layers_of_log, part_of
from misgnet_runtime.engines.tensorrt.layers import Kernel, PlanLayers, ProfileLayers, Share
from misgnet_runtime.engines.tensorrt.logger import VendorLog


def tensor(name: str, shape: str, datatype: str) -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{shape}], Strides: [1], StrideOrder: [0], Datatype: {datatype}, "
        "Format: (NHWC) Channel major format }"
    )


def line(
    name: str, kind: str, inputs: list[str], outputs: list[str], *, constants: list[str] | None = None,
    stream: int = 0, origins: tuple[str, ...] = (),
) -> str:  # fmt: skip
    """Returns a line as TensorRT for RTX 1.7 logs it."""
    lists = [f"[{' ' if found else ''}{', '.join(found)}]" for found in (inputs, constants or [], outputs)]
    metadata = "".join(f"[ONNX Layer: {origin}]" for origin in origins)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {lists[0]}, Constants: {lists[1]}, Outputs: {lists[2]}, "
        f"TacticName: t, StreamId: {stream}, Metadata: {metadata}"
    )


SCALE = tensor("scale", "1,64,1,1", "Float")
CONVOLUTION = line(
    "decode1.conv3/Conv_7_myl0_1", "correlation", [tensor("x", "2,32,16,16", "Int8")],
    [tensor("y", "2,64,16,16", "Float")], constants=[tensor("w", "64,32,3,3", "Int8"), SCALE],
    origins=("decode1.conv3/Conv_7",),
)  # fmt: skip
DEPTHWISE = line(
    "dw/Conv_8_myl0_2", "correlation", [tensor("y", "2,64,16,16", "Half")], [tensor("z", "2,64,16,16", "Half")],
    constants=[tensor("w", "64,1,3,3", "Half")], origins=("backbone.block2.0.mlp.dwconv/Conv_8",), stream=1,
)  # fmt: skip
TRANSPOSE = line("__myl_Tran_myl0_3", "kgen", [tensor("z", "8,4", "Float")], [tensor("zt", "4,8", "Float")])
SIGNAL = "Name: __mye1_myl0_4, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, "
SIGNAL += "EventId: 1, Metadata: "
TAIL = "\n\nI/O Tensors:\n Name: before, IOMode: Input\n\nEngine Metadata:\n Multi-Device: Disabled"


def kernels(*lines: str) -> list[Kernel]:
    found = layers_of_log("\n".join(lines) + TAIL, [], 1)
    assert found.note == ""
    return found.profiles[0].kernels


def kernel(text: str) -> Kernel:
    (found,) = kernels(text)
    return found


def test_kernels_are_listed_without_events_in_order() -> None:
    found = kernels(CONVOLUTION, SIGNAL, DEPTHWISE, TRANSPOSE)
    assert [one.kind for one in found] == ["convolution", "convolution", "move"]
    assert [one.part for one in found] == ["decode1", "backbone stage 2", "graph"]


def test_bytes_are_those_of_inputs_constants_and_outputs() -> None:
    found = kernel(CONVOLUTION)
    assert found.read == 2 * 32 * 16 * 16 + 64 * 32 * 3 * 3 + 4 * 64
    assert found.written == 4 * 2 * 64 * 16 * 16
    assert found.moved == found.read + found.written


def test_a_tensor_that_is_read_twice_counts_once_with_its_largest_view() -> None:
    views = [tensor("x", "4,8", "Half"), tensor("x", "4,8", "Half"), tensor("x", "4,1", "Half")]
    assert kernel(line("__myl_SlicAdd_myl0_0", "kgen", views, [tensor("y", "4,8", "Half")])).read == 64


def test_an_int8_convolution_that_writes_float32_is_counted() -> None:
    found = layers_of_log("\n".join([CONVOLUTION, DEPTHWISE]), [1000], 1).profiles[0]
    assert [one.precision for one in found.kernels] == ["int8", "float16"]
    assert found.int8_writes_float32() == 1
    assert found.by_precision()["int8"].kernels == 1
    assert (found.streams(), found.moves(), found.context_bytes) == (2, 0, 1000)


def test_macs_of_convolutions_also_of_groups() -> None:
    assert kernel(CONVOLUTION).macs == 2 * 64 * 16 * 16 * 32 * 9
    assert kernel(DEPTHWISE).macs == 2 * 64 * 16 * 16 * 9


@pytest.mark.parametrize(
    ("shapes", "output", "macs"),
    [
        (("128,64", "64,32"), "128,32", 128 * 64 * 32),
        (("2,10,6", "2,6,5"), "2,10,5", 2 * 10 * 6 * 5),
        (("2,10,6", "1,6,5"), "2,10,5", 2 * 10 * 6 * 5),
        (("2,6,10", "2,5,6"), "2,10,5", 2 * 10 * 6 * 5),  # transposed
        (("3,8,7", "3,8,6", "3,6,7"), "3,8,7", 3 * 8 * 6 * 7),  # the first is added: (3, 8, 6) x (3, 6, 7)
        (("128,64", "63,32"), "128,32", None),
        (("0,64", "64,32"), "0,32", None),
    ],
)
def test_macs_of_products(shapes: tuple[str, ...], output: str, macs: int | None) -> None:
    inputs = [tensor(f"x{index}", shape, "Half") for index, shape in enumerate(shapes)]
    found = kernel(line("__myl_FcAdd_myl0_1", "runtime_fusion", inputs, [tensor("y", output, "Half")]))
    assert (found.kind, found.macs) == ("product", macs)


def test_macs_of_fused_attention_are_those_of_both_products() -> None:
    inputs = [tensor("q", "4,100,64", "Half"), tensor("k", "4,16,64", "Half"), tensor("v", "4,16,64", "Half")]
    found = kernel(line("_gemm_mha_v2_myl0_1", "kgen", inputs, [tensor("y", "4,100,64", "Int8")]))
    assert (found.kind, found.precision, found.macs) == ("attention", "float16", 2 * 4 * 100 * 16 * 64)


@pytest.mark.parametrize(
    ("name", "read", "kind"),
    [
        ("ReshTranMove", "Half", "move"),
        ("MulMinMaxRounCast", "Half", "move"),  # QuantizeLinear
        ("CastMulTran", "Int8", "move"),  # DequantizeLinear
        ("CastMulTran", "Half", "other"),
        ("MulAddTran", "Int8", "other"),
    ],
)
def test_kernels_that_only_move_or_convert(name: str, read: str, kind: str) -> None:
    found = kernel(line(f"__myl_{name}_myl0_1", "kgen", [tensor("x", "4,4", read)], [tensor("y", "4,4", "Half")]))
    assert (found.kind, found.macs) == (kind, 0)


def test_precision_of_a_product_is_the_wider_of_its_operands() -> None:
    inputs = [tensor("x", "8,4", "Int8"), tensor("w", "4,6", "Half")]
    assert kernel(line("__myl_CastMulFc_myl0_1", "runtime_fusion", inputs, [tensor("y", "8,6", "Half")])).precision == (
        "float16"
    )


def test_precision_of_other_kernels_is_that_of_the_largest_output() -> None:
    outputs = [tensor("mean", "8,1", "Float"), tensor("y", "8,64", "Int8"), tensor("i", "2", "Int32")]
    assert kernel(line("__myl_MeanSub_myl0_1", "kgen", [tensor("x", "8,64", "Half")], outputs)).precision == "int8"


def test_the_part_is_that_of_most_operators() -> None:
    origins = ("backbone.norm1/LayerNormalization_1", "MGLNet0/Reshape_2", "MGLNet0.mutualnet0/Mul_3")
    found = kernel(line("__myl_Mul_myl0_1", "kgen", [], [tensor("y", "4", "Half")], origins=origins))
    assert found.part == "MGLNet0"
    layers = layers_of_log(CONVOLUTION + "\n" + line("MGLNet1.a/MatMul_3_myl0_1", "gemm", [], []), [], 1).profiles[0]
    assert layers.guidance().kernels == 1
    assert list(layers.by_part()) == ["MGLNet1", "decode1"]


@pytest.mark.parametrize(
    ("operator", "part"),
    [
        ("backbone.block1.0.attn.q/MatMul_3", "backbone stage 1"),
        ("backbone.patch_embed3.proj/Conv_3", "backbone stage 3"),
        ("backbone/Cast_1", "backbone"),
        ("MGLNet0.mutualnet0.gcn2/MatMul_1", "MGLNet0"),
        ("/Cast_6", "graph"),
        ("", "graph"),
    ],
)
def test_part_of_an_operator(operator: str, part: str) -> None:
    assert part_of(operator) == part


def test_profiles_are_told_apart_by_their_names() -> None:
    second = [
        CONVOLUTION.replace("decode1.conv3/Conv_7_myl0_1,", "decode1.conv3/Conv_7 [profile 1]_myl1_1,"),
        TRANSPOSE.replace("_myl0_3,", "_myl1_3,"),  # belongs to the kernel above, since both were compiled as number 1
    ]
    found = layers_of_log("\n".join([CONVOLUTION, DEPTHWISE, TRANSPOSE, *second]), [7, 9], 2)
    assert [profile.total().kernels for profile in found.profiles] == [3, 2]
    assert [profile.context_bytes for profile in found.profiles] == [7, 9]
    assert found.profiles[1].kernels[0].name == "decode1.conv3/Conv_7_myl1_1"


def test_dynamic_shapes_leave_bytes_and_macs_unknown() -> None:
    found = layers_of_log("\n".join([CONVOLUTION.replace("[2,", "[-1,"), TRANSPOSE]), [7], 1).profiles[0]
    assert found.total() == Share(2, None, None)
    assert found.kernels[1].moved == 256


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("", "the builder's log has no list of layers"),
        (CONVOLUTION + "\n" + DEPTHWISE[:200], "was not understood: 'Name: dw/Conv_8_myl0_2"),
        (CONVOLUTION.replace("Datatype: Int8", "Datatype: Quaternion"), "tensor x has the data type 'quaternion'"),
        (CONVOLUTION.replace("Datatype: Int8, ", ""), "was not understood"),
        ("Layer(CaskConvolution): conv1 + relu, Tactic: 0x1, x (Half[2,3]) -> y (Half[2,3])", "was not understood"),
        (SIGNAL, "kernels of the optimization profiles [], the plan has 1"),
        (CONVOLUTION.replace("Conv_7_", "Conv_7 [profile 3]_"), "optimization profiles [3]"),
    ],
)
def test_a_list_that_is_not_understood_is_unknown_with_the_reason(text: str, note: str) -> None:
    found = layers_of_log(text, [1], 1)
    assert found.profiles == []
    assert note in found.note


def test_every_truncation_of_a_list_is_understood_or_unknown() -> None:
    text = "\n".join([CONVOLUTION, SIGNAL, DEPTHWISE])
    for length in range(0, len(text), 7):
        found = layers_of_log(text[:length], [], 1)
        assert bool(found.profiles) != bool(found.note)


def test_the_number_of_activation_sizes_must_be_that_of_the_profiles() -> None:
    assert layers_of_log(CONVOLUTION, [1, 2], 1).profiles[0].context_bytes is None


# The engine inspector

IMAGE = {"Name": "x", "Location": "Device", "Dimensions": [2, 32, 16, 16]}


def layer10(**more: Any) -> dict[str, Any]:
    """Returns a layer as TensorRT 10 describes it; see engine-tools in its documentation."""
    form = {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}
    return {
        "Name": "decode1.conv3/Conv_7 + relu", "LayerType": "CaskConvolution", "Inputs": [{**IMAGE, **form}],
        "Outputs": [{**IMAGE, "Name": "y", "Dimensions": [2, 64, 16, 16], "Format/Datatype": "Row major linear FP32"}],
        "ParameterType": "Convolution", "Kernel": [3, 3], "OutMaps": 64, "Groups": 1,
        "Weights": {"Type": "Int8", "Count": 64 * 32 * 9}, "Bias": {"Type": "Float", "Count": 64},
        "TacticName": "sm80_xmma", "StreamId": 2, "Metadata": "[ONNX Layer: decode1.conv3/Conv_7]", **more,
    }  # fmt: skip


def layer11(**more: Any) -> dict[str, Any]:
    tensors = {"Inputs": [{**IMAGE, "Datatype": "Int8", "Format": "(NHWC) Channel major format"}]}
    weights = {"Name": "w", "Dimensions": [64, 32, 3, 3], "Datatype": "Int8", "Format": "(NHWC)"}
    output = {"Name": "y", "Dimensions": [2, 64, 16, 16], "Datatype": "Float", "Format": "(NHWC)"}
    return {
        "Name": "decode1.conv3/Conv_7_myl0_1", "LayerType": "correlation", **tensors, "Constants": [weights],
        "Outputs": [output], "StreamId": 0, "Metadata": "[ONNX Layer: decode1.conv3/Conv_7]", **more,
    }  # fmt: skip


def inspected(*layers: object, profiles: int = 1) -> PlanLayers:
    return layers_of_inspector(json.dumps({"Layers": layers, "Bindings": ["x"]}), [5] * profiles, profiles)


def only(found: PlanLayers) -> ProfileLayers:
    assert found.note == ""
    (profile,) = found.profiles
    return profile


def test_inspector_of_tensorrt_10_counts_listed_weights() -> None:
    found = only(inspected(layer10(), {**layer10(), "Name": "c", "LayerType": "Constant"}))
    (one,) = found.kernels
    assert (one.part, one.kind, one.precision, one.stream) == ("decode1", "convolution", "int8", 2)
    assert one.read == 2 * 32 * 16 * 16 + 64 * 32 * 9 + 4 * 64
    assert one.macs == 2 * 64 * 16 * 16 * 32 * 9
    assert one.int8_writes_float32 and found.context_bytes == 5


def test_inspector_of_tensorrt_11_reads_data_types_apart_from_formats() -> None:
    (one,) = only(inspected(layer11())).kernels
    assert (one.precision, one.macs) == ("int8", 2 * 64 * 16 * 16 * 32 * 9)


def test_inspector_without_details_or_with_other_data_is_unknown() -> None:
    assert "not built with detailed profiling information" in inspected("conv + relu").note
    assert "dynamic" not in inspected(layer10()).note
    assert layers_of_inspector("", [], 1).note == "the plan could not be opened to inspect it"
    for text in ("{", "{}", "[]", '{"Layers": 3}', '{"Layers": [{}]}', '{"Layers": [{"LayerType": "x"}]}'):
        assert "was not understood" in layers_of_inspector(text, [], 1).note


def test_inspector_with_dynamic_shapes_has_unknown_bytes() -> None:
    form = {"Dimensions": [-1, 32, 16, 16], "Format/Datatype": "N/A due to dynamic shapes"}
    found = only(inspected(layer10(Inputs=[{**IMAGE, **form}])))
    assert found.total() == Share(1, None, None)


# The log


def test_the_log_keeps_the_list_and_the_activation_memory_only() -> None:
    log = VendorLog()
    messages = [
        ("VERBOSE", "Tactic: 0x1 Time: 3"), ("INFO", "Total Activation Memory: 75117056 bytes"),
        ("INFO", "Total Weights Memory: 17 bytes"), ("INFO", "Total Activation Memory: 128122880 bytes"),
        ("VERBOSE", "Layers:\nName: a\n\nI/O Tensors:"), ("WARNING", "slow"),
    ]  # fmt: skip
    for severity, text in messages:
        log.add(severity, text)
    assert log.layers == "Name: a\n\nI/O Tensors:"
    assert log.activation_bytes == [75117056, 128122880]
    assert (log.warnings, log.errors) == (["slow"], [])
