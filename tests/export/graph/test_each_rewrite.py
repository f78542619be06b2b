"""Tests each rewrite on the whole network: the logits of golden weights change only by float32 rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs the [export] extra")

import onnx
from onnx import TensorProto, helper, numpy_helper

from misgnet_calibration.onnx_graph import Graph, copied
from misgnet_export.graph.algebra import GPU_REWRITES, REWRITES, rewrite
from misgnet_export.graph.export import export_graph
from misgnet_export.graph.simplify import simplify_graph, with_shapes
from misgnet_runtime.bundle import Interface
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from support.golden import make_network

SEED = 20260103
TILE = 64
RAW = Interface(TILE, 8, "uint8", "probability")  # pixels in and one probability out: every rewrite has work
Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto]
ONLY_FOR_GPUS = [step for step in GPU_REWRITES if step not in REWRITES]
STAGE_NORMS = tuple(f"network.backbone.norm{stage}.weight" for stage in (1, 2, 3))


@cache
def simplified(norm: float) -> onnx.ModelProto:
    """Returns the graph with the stage norms of the encoder times ``norm``, as ``make_network`` scales them."""
    model = copied(_simplified())
    for item in model.graph.initializer:
        if item.name in STAGE_NORMS:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(norm), item.name))
    return model


@cache
def _simplified() -> onnx.ModelProto:
    model = simplify_graph(export_graph(make_network(SEED), RAW))
    assert {item.name for item in model.graph.initializer} >= set(STAGE_NORMS)
    return model


@cache
def stages(norm: float, steps: tuple[Rewrite, ...] = REWRITES) -> tuple[onnx.ModelProto, ...]:
    """Returns the simplified graph, and the graph after each rewrite."""
    found = [simplified(norm)]
    for step in steps:
        found.append(with_shapes(step(found[-1])))
    return tuple(found)


def logits_of(model: onnx.ModelProto) -> np.ndarray:
    """Returns the difference of both logits (B, T, T) for a batch of three pairs."""
    model = copied(model)
    last = next(n for n in reversed(model.graph.node) if n.op_type in ("Softmax", "Sigmoid"))
    model.graph.output.append(helper.make_tensor_value_info(last.input[0], TensorProto.FLOAT, None))
    before, after = np.random.default_rng(SEED).integers(0, 256, (2, 3, TILE, TILE, 3), np.uint8)
    with OnnxRuntimeEngine(model.SerializeToString(), RAW.max_batch) as engine:
        found = engine.infer({"before": before, "after": after})[last.input[0]]
    return found[:, 1] - found[:, 0] if found.shape[1] == 2 else found[:, 0]


@pytest.mark.parametrize("norm", [1, 4])
@pytest.mark.parametrize("index", range(len(REWRITES)), ids=[step.__name__ for step in REWRITES])
def test_logits_change_only_by_float32_rounding(index: int, norm: float) -> None:
    before, after = stages(norm)[index : index + 2]
    expected, found = logits_of(before), logits_of(after)
    assert len(Graph(after).nodes) != len(Graph(before).nodes) or after.graph.node != before.graph.node
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("norm", [1, 4])
@pytest.mark.parametrize("step", ONLY_FOR_GPUS, ids=[step.__name__ for step in ONLY_FOR_GPUS])
def test_logits_of_a_gpu_graph_change_only_by_float32_rounding(step: Rewrite, norm: float) -> None:
    index = GPU_REWRITES.index(step)
    before, after = stages(norm, GPU_REWRITES)[index : index + 2]
    expected, found = logits_of(before), logits_of(after)
    assert len(Graph(after).nodes) != len(Graph(before).nodes)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


def test_gpu_graph_keeps_what_tensorrt_fuses() -> None:
    before, after = Graph(simplified(1)), Graph(rewrite(simplified(1), for_gpu=True))
    operators = [node.op_type for node in after.nodes]
    assert operators.count("Resize") == [node.op_type for node in before.nodes].count("Resize") == 7
    of_head = [node for node in after.nodes if node.name.startswith("backbone.block1") and node.op_type == "MatMul"]
    assert [node.name.split("/")[0].removeprefix("backbone.block1.") for node in of_head] == [
        f"{block}.{part}" for block in (0, 1) for part in ("attn.q", "attn.kv", "attn", "attn")
    ], "the last linear layer is a part of the values"
    guidance = [node for node in after.nodes if node.name.startswith("MGLNet") and node.op_type == "MatMul"]
    assert len(guidance) == 3 * 9, "nodes of the pixels, and products with weights of the nodes"


def test_norm_factor_4_is_another_network() -> None:
    first, second = logits_of(simplified(1)), logits_of(simplified(4))
    assert np.abs(first - second).max() > 0.01 * first.std()


def test_all_rewrites_together_are_the_last_stage() -> None:
    assert rewrite(simplified(1)).graph.node == stages(1)[-1].graph.node
    assert rewrite(simplified(1), for_gpu=True).graph.node == stages(1, GPU_REWRITES)[-1].graph.node
