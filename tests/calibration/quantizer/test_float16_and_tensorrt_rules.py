"""Tests float16 types and TensorRT's rules, and compiles a graph that satisfies them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.checks import check_numbers, check_tensorrt_rules
from misgnet_calibration.quantizer.float16 import fits_float16, float32_reasons, to_float16
from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_calibration.quantizer.placement import activations, quantizer_sites
from misgnet_calibration.quantizer.qdq import quantize_graph
from misgnet_calibration.quantizer.quantize import quantize
from misgnet_calibration.quantizer.recipes import CPU, TENSORRT
from misgnet_calibration.quantizer.weight_storage import compress_constants
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.engines.tensorrt import PlanOptions, compile_plan
from misgnet_runtime.errors import GateFailed
from support.graphs import parsed, two_branch


def quantized(recipe=TENSORRT, maxima: dict[str, float] | None = None) -> onnx.ModelProto:
    model = two_branch()
    names = activations(quantizer_sites(Graph(model), recipe))
    ranges = dict.fromkeys(names, Range(-4.0, 4.0))
    return quantize(model, recipe, ranges, maxima or {}, float32_scopes=MISGNET.float32_scopes).model


OUTPUTS = {"encoder_relu"}  # of two_branch: a LayerNorm reads the tokens of that map


def maker(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if tensor in node.output)


def set_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    item = next(item for item in model.graph.initializer if item.name == name)
    item.CopyFrom(numpy_helper.from_array(value, name))


def test_tensorrt_graph_satisfies_the_rules_and_compiles():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    model = quantized()
    check_tensorrt_rules(model, outputs=OUTPUTS)
    plan = compile_plan(
        model.SerializeToString(), PlanOptions(vendor="rtx", compute_capabilities=("sm86",), profiles=((1, 4, 4),))
    )
    assert plan.data
    assert plan.quantize_layers == 7
    assert plan.dequantize_layers == 7 + 5, "two products share one weight"


def test_cpu_graph_breaks_the_rules():
    with pytest.raises(GateFailed, match="must have INT8 zero points, but has UINT8"):
        check_tensorrt_rules(quantized(CPU), outputs=OUTPUTS)
    check_numbers(quantized(CPU))


def unpaired(model: onnx.ModelProto) -> None:
    maker(model, "encoder_gelu_q").output[0] = "elsewhere"
    maker(model, "encoder_gelu_dq_half").input[0] = "encoder_gelu_levels"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 256, 128), np.int8), "encoder_gelu_levels"))


def quantized_bias(model: onnx.ModelProto) -> None:
    scale, zero = np.full(32, 0.01, np.float16), np.zeros(32, np.int8)
    parts = {"bias8": np.zeros(32, np.int8), "bias_s": scale, "bias_z": zero}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in parts.items())
    node = helper.make_node("DequantizeLinear", list(parts), ["bias_dq"], "bias", axis=0)
    model.graph.node.insert(0, node)
    maker(model, "encoder_conv").input[2] = "bias_dq"


def residual(model: onnx.ModelProto) -> None:
    maker(model, "encoder_sum").input[0] = "encoder_gelu_dq_half"


def wrong_axis(model: onnx.ModelProto) -> None:
    next(a for a in maker(model, "linear_w_dq_half").attribute if a.name == "axis").i = 0


def float_reader_of_an_output(model: onnx.ModelProto) -> None:
    maker(model, "encoder_flat").input[0] = "encoder_relu"


def images_read_as_uint8(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["before"], ["moved"], "mover"))


def setting(name: str, value: np.ndarray) -> Callable[[onnx.ModelProto], None]:
    return lambda model: set_constant(model, name, value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unpaired, "must be read by DequantizeLinear only, but is read by no node"),
        (quantized_bias, "Conv 'backbone.block/Conv_encoder_conv' must dequantize .* no bias"),
        (residual, "is read by Add 'backbone.block/Add_encoder_sum', which must stay float"),
        (wrong_axis, r"must have scales \(128,\) along axis 1"),
        (float_reader_of_an_output, "'backbone.block/Conv_encoder_conv', which is also read unquantized by .*flat"),
        (images_read_as_uint8, "Identity 'mover' reads uint8"),
        (setting("encoder_gelu_zero", np.int8(3)), "has zero points other than 0"),
        (setting("encoder_gelu_scale_half", np.float16(0)), r"has scales from 0\.0 to 0\.0; they must be"),
        (setting("encoder_gelu_scale_half", np.float16(np.inf)), "positive and finite"),
        (setting("encoder_gelu_scale_half", np.float32(0.1)), "type FLOAT16 with a scale of type FLOAT"),
        (setting("linear_w_scale_half", np.full(32, 0.1, np.float16)), r"but has \(32,\) along axis 1"),
        (setting("norm_w_half", np.full(32, np.nan, np.float16)), "'norm_w_half' of .* contains NaN"),
    ],
)  # fmt: skip
def test_every_broken_rule_is_reported_with_its_node(damage, message):
    model = quantized()
    damage(model)
    with pytest.raises(GateFailed, match=message):
        check_tensorrt_rules(model, outputs=OUTPUTS)


def test_output_is_dequantized_by_any_operator_only_where_it_was_placed() -> None:
    model = quantized()
    check_tensorrt_rules(model, outputs=OUTPUTS)
    with pytest.raises(GateFailed, match=r"is read by Reshape .*Reshape_encoder_flat', which must"):
        check_tensorrt_rules(model)


def test_only_a_quantized_convolution_has_an_int8_output() -> None:
    with pytest.raises(GateFailed, match="quantizes 'encoder_stem_relu' as an output, which no quantized convolution"):
        check_tensorrt_rules(quantized(), outputs={*OUTPUTS, "encoder_stem_relu"})


def test_activation_beyond_float16_is_rejected():
    model = two_branch()
    ranges = dict.fromkeys(activations(quantizer_sites(Graph(model), TENSORRT)), Range(-4.0, 1e8))
    with pytest.raises(GateFailed, match=r"float16 cannot represent the constant|positive and finite"):
        quantize(model, TENSORRT, ranges, {})


def test_nan_weights_are_rejected_by_both_recipes():
    for recipe in (CPU, TENSORRT):
        model = two_branch()
        set_constant(model, "stem_w", np.full((16, 3, 3, 3), np.nan, np.float32))
        ranges = dict.fromkeys(activations(quantizer_sites(Graph(model), recipe)), Range(-4.0, 4.0))
        with pytest.raises(GateFailed, match=r"'stem_w' of 'backbone\.block/Conv_encoder_stem' contains"):
            quantize(model, recipe, ranges, {})


def test_guidance_and_large_activations_stay_float32():
    graph = Graph(two_branch())
    kept = float32_reasons(graph, {"encoder_gelu": 600.0, "encoder_sum": 500.0}, MISGNET.float32_scopes)
    outside = [name for name in kept if not name.startswith("MGLNet0/")]
    assert outside == ["backbone.block/Gelu_encoder_gelu", "backbone.block/MatMul_encoder_second"]
    inside = [n.name for n in graph.nodes if n.name.startswith("MGLNet0/")]
    assert set(inside) <= set(kept)


def test_dequantizers_have_the_type_of_their_reader():
    model = quantized(maxima={"encoder_product": 600.0})
    graph = Graph(model)
    types = {n.output[0]: {graph.elem_type(x) for x in n.input} for n in graph.nodes if n.op_type == "MatMul"}
    assert types["encoder_product"] == types["guide_out"] == {TensorProto.FLOAT}
    assert types["encoder_second"] == types["decoder_one"] == {TensorProto.FLOAT16}
    readers = {n.op_type for n in graph.nodes for x in n.input
               if x in graph.producer and graph.producer[x].op_type == "DequantizeLinear"}  # fmt: skip
    assert readers == {"Conv", "MatMul", "Reshape"}, "a Cast in between would prevent INT8 kernels"


def test_tensor_read_in_both_types_is_dequantized_twice():
    text = """g (float[batch,32,16] x) => (float[batch,32,16] y) { one = MatMul (x, w)  two = MatMul (x, w)
        y = Add (one, two) }"""
    model = parsed(text, {"w": np.eye(16, dtype=np.float32)})
    written = quantize_graph(model, quantizer_sites(Graph(model), TENSORRT), TENSORRT, {"x": Range(-1.0, 1.0)})
    model = to_float16(written, ["one/MatMul_one"])
    graph = Graph(model)
    assert [graph.elem_type(maker(model, n).input[0]) for n in ("one", "two")] == [
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
    ]
    assert sum(n.op_type == "QuantizeLinear" for n in graph.nodes) == 1
    check_tensorrt_rules(model)


@pytest.mark.parametrize("guard", [1e-12, 3e-5, 1e5])
def test_guard_that_float16_cannot_represent_stays_float32(guard):
    text = """g (float[batch,8] x) => (float[batch,8] y, float[batch,8] z) {
        safe = Clip (x, guard)  y = Sqrt (safe)
        z = Neg (y) }"""
    model = parsed(text, {"guard": np.float32(guard)})
    assert list(float32_reasons(Graph(model), {})) == ["safe/Clip_safe"]
    with pytest.raises(GateFailed, match=r"float16 cannot represent the constant 'guard'"):
        to_float16(model, [])
    typed = Graph(to_float16(model, ["safe/Clip_safe"]))
    assert [typed.elem_type(n) for n in ("safe", "y", "z")] == [TensorProto.FLOAT] * 3, "outputs keep their type"
    assert typed.elem_type("y_half") == TensorProto.FLOAT16


def test_fits_float16_accepts_normal_zero_and_exact_values():
    fitting = [0.0, 1.0, 65504.0, 2.0**-14, 2.0**-20, [1.0, 1e-9]]
    assert all(fits_float16(np.array(v, np.float32)) for v in fitting)
    assert not any(fits_float16(np.array(v, np.float32)) for v in [1e-9, 3.1e-5, 65536.0, np.inf, np.nan])


def test_cast_precedes_its_first_reader_and_is_shared():
    text = """g (float[batch,4,8,8] x) => (float[batch,4,16,16] y) {
        a = Relu (x)  b = Exp (a)  c = Sqrt (a)  d = Mul (b, c)
        y = Resize <mode = "linear"> (d, , scales) }"""
    model = to_float16(parsed(text, {"scales": np.float32([1, 1, 2, 2])}), ["a/Relu_a", "d/Mul_d"])
    onnx.checker.check_model(model, full_check=True)  # rejects a node that precedes its inputs
    casts = [(n.input[0], n.output[0]) for n in model.graph.node if n.op_type == "Cast"]
    assert casts == [("a", "a_half"), ("b", "b_single"), ("c", "c_single"), ("d", "d_half"), ("y_half", "y")]
    assert "scales" in maker(model, "y_half").input, "the scales of Resize stay float32"


def test_moved_values_keep_their_type():
    text = """g (float[batch,4,8,8] x) => (float[batch,32,16] y) {
        a = Relu (x)  b = Transpose <perm = [0, 2, 3, 1]> (a)  c = Reshape (b, sizes)  d = Exp (c)
        e = Reshape (d, sizes)  f = Concat <axis = 1> (c, e)  y = Sqrt (f) }"""
    keep = ["a/Relu_a", "d/Exp_d"]
    graph = Graph(to_float16(parsed(text, {"sizes": np.array([-1, 16, 16], np.int64)}), keep))
    assert {graph.elem_type(name) for name in "abcdef"} == {TensorProto.FLOAT}
    casts = [(n.input[0], n.output[0]) for n in graph.nodes if n.op_type == "Cast"]
    assert casts == [("f", "f_half"), ("y_half", "y")]


def test_values_of_both_types_are_joined_in_float16():
    text = """g (float[batch,16] x) => (float[batch,48] y) {
        a = Relu (x)  b = Exp (x)  c = Concat <axis = 1> (a, b, constant)  y = Sqrt (c) }"""
    model = to_float16(parsed(text, {"constant": np.ones((1, 16), np.float32)}), ["a/Relu_a"])
    graph = Graph(model)
    assert [graph.elem_type(name) for name in maker(model, "c").input] == [TensorProto.FLOAT16] * 3
    assert graph.elem_type("a") == TensorProto.FLOAT


def test_only_weights_are_stored_as_float16():
    text = """g (float[batch,64,64] x) => (float[batch,64,64] y) { a = MatMul (x, w)  b = Add (a, offset)
        c = MatMul (b, both)  d = Add (c, both)  y = MatMul (d, exact) }"""
    rng = np.random.default_rng(0)
    square = {n: rng.standard_normal((64, 64)).astype(np.float32) for n in ("w", "offset", "both")}
    model = parsed(text, square | {"exact": np.full((64, 64), 1e-9, np.float32)})
    small = compress_constants(model)
    types = {item.name: item.data_type for item in small.graph.initializer}
    assert types == {
        "w_stored": TensorProto.FLOAT16,
        **dict.fromkeys(("offset", "both", "exact"), TensorProto.FLOAT),
    }
    assert Graph(small).elem_type("w") == TensorProto.FLOAT
    assert model == parsed(text, square | {"exact": np.full((64, 64), 1e-9, np.float32)}), "the input is not changed"
