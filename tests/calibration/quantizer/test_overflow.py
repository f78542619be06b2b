"""Tests float16 overflow: predicted from calibration tiles, and found by running the finished graph on other tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.float16 import float32_reasons
from misgnet_calibration.quantizer.overflow import OverflowFix, fix_overflow, float16_maxima
from misgnet_calibration.quantizer.quantize import QuantizationInputs
from misgnet_calibration.quantizer.recipes import TENSORRT, TENSORRT_FP16, Recipe
from misgnet_calibration.statistics.collect import absolute_maxima
from misgnet_calibration.statistics.observers import Range
from misgnet_runtime.bundle.manifest import Interface
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.inference.detector import arrays_for
from misgnet_runtime.raster.dataset import Tile, TileSet, stack
from support.graphs import parsed

INTERFACE = Interface(32, 4, output="logits")
_GRAPH = """
g (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,32,32,3] logits) {
    head_before = Cast <to = 1> (before)
    head_after = Cast <to = 1> (after)
    body_difference = Sub (head_before, head_after)
    body_big = Mul (body_difference, gain)
    body_far = Neg (body_big)
    body_small = Mul (body_far, back)
    tail_bounded = Tanh (body_small)
    logits = Add (tail_bounded, tail_bounded)
}
"""


def graph(gain: float = 300.0) -> onnx.ModelProto:
    """Multiplies the difference of the dates by ``gain`` and scales it down; bright tiles overflow float16 between."""
    return parsed(_GRAPH, {"gain": np.float32(gain), "back": np.float32(1 / 512)})


def tiles(root: Path, *brightness: int) -> TileSet:
    """Writes tiles whose dates differ by ``brightness`` except in one corner."""
    for part in ("A", "B", "label"):
        (root / part).mkdir(parents=True)
        for index, value in enumerate(brightness):
            pixels = np.full((32, 32, 3), value if part == "A" else 0, np.uint8)
            pixels[0, 0] = 0
            Image.fromarray(pixels[..., 0] if part == "label" else pixels).save(root / part / f"{index}_of_{value}.png")
    return TileSet.open(root, 32)


@pytest.fixture
def dark(tmp_path: Path) -> TileSet:
    return tiles(tmp_path / "dark", 0, 1)


@pytest.fixture
def bright(tmp_path: Path) -> list[Tile]:
    return list(tiles(tmp_path / "bright", 1, 240, 255).tiles())


def start(model: onnx.ModelProto, dark: TileSet) -> QuantizationInputs:
    return QuantizationInputs(model=model, ranges={}, absolute_maxima=absolute_maxima(model, INTERFACE, dark))


def fixed(inputs: QuantizationInputs, on: list[Tile], recipe: Recipe = TENSORRT_FP16) -> OverflowFix:
    return fix_overflow(inputs, inputs.quantize(recipe), INTERFACE, on)


def output_of(model: onnx.ModelProto, tile: Tile) -> np.ndarray:
    with OnnxRuntimeEngine(model.SerializeToString(), 4) as engine:
        return engine.infer(arrays_for(INTERFACE, *stack([tile])))["logits"]


# Predicted from calibration tiles


@pytest.mark.parametrize(("maximum", "wide"), [(255.0, False), (256.0, True), (511.0, True)])
def test_operators_that_square_their_input_have_a_lower_limit(maximum: float, wide: bool) -> None:
    text = """g (float[batch,8] x) => (float[batch,8] y, float[batch,1] n, float[batch,8] z) {
        y = LayerNormalization (x, scale)  n = ReduceL2 <keepdims = 1> (x)  z = Neg (x) }"""
    found = float32_reasons(Graph(parsed(text, {"scale": np.ones(8, np.float32)})), {"x": maximum})
    assert set(found) == ({"y/LayerNormalization_y", "n/ReduceL2_n"} if wide else set())
    assert all(f"up to {maximum:.0f}" in reason for reason in found.values())


def test_overflow_on_calibration_tiles_is_fixed_beforehand(bright: list[Tile], tmp_path: Path) -> None:
    found = fixed(start(graph(), tiles(tmp_path / "calib", 255)), bright)
    assert not found.added and {"body/Mul_body_big", "body/Neg_body_far"} <= found.quantized.float32.keys()


# Found by running the graph on other tiles


def test_overflow_on_other_tiles_is_found_and_fixed(dark: TileSet, bright: list[Tile]) -> None:
    inputs = start(graph(), dark)
    before = inputs.quantize(TENSORRT_FP16)
    assert not before.float32, "nothing overflows on the dark tiles"
    maxima = float16_maxima(Graph(before.model), INTERFACE, bright)
    assert not maxima["body_big"].holds and maxima["body_big"].tile == "2_of_255@0,0"
    assert maxima["tail_bounded"].value == pytest.approx(1, abs=1e-3)
    found = fixed(inputs, bright)
    assert set(found.added) == {"body/Mul_body_big", "body/Neg_body_far", "body/Mul_body_small"}
    assert found.quantized.float32 == found.added == found.inputs.float32
    reason = found.added["body/Mul_body_big"]
    assert reason.startswith("'body_big' ") and reason.endswith("in float16 on tile 2_of_255@0,0")
    for tile in bright:
        np.testing.assert_allclose(output_of(found.quantized.model, tile), output_of(graph(), tile), atol=2e-3)
    typed = Graph(found.quantized.model)
    assert typed.elem_type("body_big") == onnx.TensorProto.FLOAT and typed.elem_type("tail_bounded") != 1


def test_headroom_refers_to_the_largest_float16_tensor(dark: TileSet, bright: list[Tile]) -> None:
    found = fixed(start(graph(), dark), bright)
    assert found.largest is not None and found.largest.tensor.startswith("head_")
    assert found.headroom == pytest.approx(65504 / 255)


def test_graph_without_overflow_is_not_changed(dark: TileSet, bright: list[Tile]) -> None:
    inputs = start(graph(gain=2.0), dark)
    quantized = inputs.quantize(TENSORRT_FP16)
    found = fix_overflow(inputs, quantized, INTERFACE, bright)
    assert found.quantized is quantized and found.inputs is inputs and not found.added
    assert found.headroom == pytest.approx(65504 / 510)


def test_unfixable_overflow_names_operator_tensor_and_tile(dark: TileSet, bright: list[Tile]) -> None:
    inputs = start(graph(), dark)
    quantized = inputs.quantize(TENSORRT_FP16)
    with pytest.raises(GateFailed, match=r"Mul 'body/Mul_body_big' overflows: 'body_big' .* on tile 2_of_255@0,0"):
        fix_overflow(inputs, quantized, INTERFACE, bright, rounds=0)


def test_float16_part_of_an_int8_graph_is_checked(tmp_path: Path) -> None:
    text = """
    g (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,32,32,16] logits) {
        head_before = Cast <to = 1> (before)
        head_after = Cast <to = 1> (after)
        body_difference = Sub (head_before, head_after)
        body_wide = Concat <axis = 3> (body_difference, body_difference, body_difference, body_difference,
            body_difference, body_difference)
        body_tokens = Reshape (body_wide, tokens)
        body_product = MatMul (body_tokens, w)
        body_big = Mul (body_product, gain)
        body_small = Mul (body_big, back)
        tail_map = Reshape (body_small, map)
        logits = Slice (tail_map, zero, sixteen, three)
    }"""
    constants = {
        "w": np.eye(18, dtype=np.float32), "gain": np.float32(400), "back": np.float32(1 / 512),
        "tokens": np.array([0, 1024, 18]), "map": np.array([0, 32, 32, 18]), "zero": np.array([0]),
        "sixteen": np.array([16]), "three": np.array([3]),
    }  # fmt: skip
    model = parsed(text, constants)
    maxima = absolute_maxima(model, INTERFACE, tiles(tmp_path / "a", 1))
    inputs = QuantizationInputs(model=model, ranges={"body_tokens": Range(-255.0, 255.0)}, absolute_maxima=maxima)
    found = fixed(inputs, list(tiles(tmp_path / "b", 250).tiles()), TENSORRT)
    assert [site.node for site in found.quantized.sites] == ["body/MatMul_body_product"]
    assert {"body/Mul_body_big", "body/Mul_body_small"} <= found.added.keys()
    assert not any(node.startswith("body/MatMul") for node in found.added)
