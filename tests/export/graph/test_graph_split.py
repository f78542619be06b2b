"""Tests that a graph cut into encoder and head computes the same as the whole graph in every precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from rich.console import Console

pytest.importorskip("onnxsim", reason="the compiler needs the [export] extra")

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.placement import activations, quantizer_sites
from misgnet_calibration.quantizer.quantize import quantize
from misgnet_calibration.quantizer.recipes import CPU, CPU_ARM, OPENVINO, RTX, TENSORRT, TENSORRT_FP16, Recipe
from misgnet_calibration.statistics.observers import Range
from misgnet_export.evidence import decode_plan_record
from misgnet_export.graph.half import with_half_features
from misgnet_export.graph.split import SplitGraph, split_graph
from misgnet_export.pipeline import compile as engines
from misgnet_export.pipeline import split as splitting
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.result import GraphFile, WrittenGraph
from misgnet_export.pipeline.split import split_graphs
from misgnet_runtime.bundle.manifest import Interface, PlanProfile, SplitEntry
from misgnet_runtime.bundle.targets import parse_target
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.engines.tensorrt import Plan, PlanCompatibility, PlanLayers, PlanOptions
from misgnet_runtime.engines.tensorrt.layers import Kernel, ProfileLayers, described
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.split_detector import SplitDetector
from misgnet_runtime.raster.dataset import Tile, TileSet
from support.builds import context_of, request_of
from support.graphs import SIDE, images, parsed, two_stage, write_tiles

INTERFACE = Interface(SIDE, 4)
KERNEL = Kernel("k", "decode1", "move", "float16", 0, 10, 20)
NO_NETWORK: Any = None  # none of these targets converts it
REQUEST = request_of(tile=SIDE, split=True)
RECIPES = pytest.mark.parametrize(
    "recipe", [None, CPU, CPU_ARM, OPENVINO, RTX, TENSORRT, TENSORRT_FP16], ids=lambda r: r.name if r else "float"
)


def graph_for(recipe: Recipe | None) -> onnx.ModelProto:
    model = two_stage()
    if recipe is None:
        return model
    ranges = {name: Range(-3.0, 5.0) for name in activations(quantizer_sites(Graph(model), recipe))}
    return quantize(model, recipe, ranges, {}).model


def opened(parts: SplitGraph) -> SplitDetector:
    encoder, head = (OnnxRuntimeEngine(part.SerializeToString(), 4) for part in (parts.encoder, parts.head))
    return SplitDetector(encoder, head, INTERFACE, parts.features)


def whole_prediction(model: onnx.ModelProto, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    with ChangeDetector(OnnxRuntimeEngine(model.SerializeToString(), 4), INTERFACE) as detector:
        return detector.probability(before, after)


# The cut


@RECIPES
def test_encoder_and_head_reproduce_the_whole_graph_at_every_batch(recipe: Recipe | None) -> None:
    model = graph_for(recipe)
    tolerance = 2e-3 if recipe and recipe.float16 else 1e-6  # onnxruntime computes float16 in float32 where it can
    with opened(split_graph(model, INTERFACE)) as parts:
        for batch in (1, 3, 4):
            before, after = images(batch, batch)
            found = parts.compare(parts.encode(before), parts.encode(after))
            np.testing.assert_allclose(found, whole_prediction(model, before, after), atol=tolerance)
            assert found.std() > 0.01, "the prediction depends on the pixels"


@RECIPES
def test_features_are_float32_maps_in_graph_order(recipe: Recipe | None) -> None:
    features = split_graph(graph_for(recipe), INTERFACE).features
    assert [(f.name, f.dtype, f.shape, f.layout) for f in features] == [
        ("feature1", "float32", [-1, 16, 16, 16], "NCHW"), ("feature2", "float32", [-1, 32, 8, 8], "NCHW"),
    ]  # fmt: skip


@RECIPES
def test_parts_have_the_constants_and_nodes_of_the_whole_graph(recipe: Recipe | None) -> None:
    model = graph_for(recipe)
    parts = split_graph(model, INTERFACE)
    constants = {item.name: item for item in model.graph.initializer}
    nodes = {node.name for node in model.graph.node}
    for part in (parts.encoder, parts.head):
        assert all(constants[item.name] == item for item in part.graph.initializer)
        added = {node.name.rstrip("12") for node in part.graph.node if node.name not in nodes}
        assert added <= {"/Cast_feature", "/Concat_feature"}
    held = [{item.name for item in part.graph.initializer} for part in (parts.encoder, parts.head)]
    assert {name for name, item in constants.items() if len(item.dims) == 4} <= held[0] | held[1]
    assert not any(len(constants[name].dims) == 4 for name in held[0] & held[1]), "no weight is stored twice"


def test_whole_graph_is_not_modified() -> None:
    model = two_stage()
    split_graph(model, INTERFACE)
    with_half_features(model, INTERFACE)
    assert model == two_stage()


def test_float16_features_are_float32_at_the_cut() -> None:
    model = graph_for(TENSORRT_FP16)
    parts = split_graph(model, INTERFACE)
    whole, encoder, head = Graph(model), Graph(parts.encoder), Graph(parts.head)
    assert whole.elem_type("encoder_fine_map") == encoder.elem_type("encoder_fine_map") == TensorProto.FLOAT16
    assert encoder.elem_type("feature1") == head.elem_type("before_feature1") == TensorProto.FLOAT
    assert whole.elem_type("encoder_coarse_dates") == head.elem_type("encoder_coarse_dates") == TensorProto.FLOAT16


# Graphs that cannot be cut


def changed(**inputs: list[str]) -> onnx.ModelProto:
    """Returns ``two_stage`` with other inputs of the nodes that compute these outputs."""
    model = two_stage()
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1, 16, 8, 8]), "as_one"))
    for node in model.graph.node:
        node.input[:] = inputs.get(node.output[0], list(node.input))
    return model


UNCUTTABLE = {
    "dates that are never joined": (
        {"encoder_both": ["encoder_first_scaled", "encoder_first_scaled"]}, "0 operators join both dates",
    ),
    "dates in the other order": (
        {"encoder_both": ["encoder_second_scaled", "encoder_first_scaled"]}, "0 operators join both dates",
    ),
    "dates that are never stacked": (
        {"guide_fine_dates": ["encoder_fine_map", "as_one"], "encoder_coarse_dates": ["encoder_coarse_map", "as_one"]},
        "no operator stacks both dates",
    ),
    "a head that reads both dates at once": (
        {"decoder_coarse_after": ["encoder_coarse_map", "second"]}, "before_feature1, .* also needs before, after",
    ),
    "a head that reads an image": (
        {"guide_difference": ["guide_fine_after", "encoder_second_nchw"]},
        "before_feature1, .* also needs after",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNCUTTABLE)
def test_graph_that_cannot_be_cut_is_rejected(case: str) -> None:
    inputs, message = UNCUTTABLE[case]
    with pytest.raises(GateFailed, match=rf"cannot be split .*{message}.*build without --split"):
        split_graph(changed(**inputs), INTERFACE)


def test_graph_that_joins_the_dates_twice_is_rejected() -> None:
    model = two_stage()
    again = onnx.helper.make_node("Concat", ["encoder_first", "encoder_second"], ["again"], "again", axis=0)
    model.graph.node.append(again)
    with pytest.raises(GateFailed, match="2 operators join both dates"):
        split_graph(model, INTERFACE)


# Features rounded to float16


@pytest.mark.parametrize("recipe", [CPU, CPU_ARM, OPENVINO], ids=lambda r: r.name)
def test_int8_features_stored_in_float16_change_nothing(recipe: Recipe) -> None:
    model = with_half_features(graph_for(recipe), INTERFACE)
    before, after = images(4)
    with opened(split_graph(model, INTERFACE)) as parts:
        kept = [[f.astype(np.float16).astype(np.float32) for f in parts.encode(date)] for date in (before, after)]
        np.testing.assert_allclose(parts.compare(*kept), whole_prediction(model, before, after), atol=1e-6)


def test_only_the_head_reads_rounded_features() -> None:
    model = with_half_features(two_stage(), INTERFACE)
    readers = {node.output[0]: list(node.input) for node in model.graph.node}
    assert readers["encoder_coarse"][0] == "encoder_fine_map"
    assert readers["guide_fine_dates"][0] == "encoder_fine_map_half"
    names = [node.name for node in model.graph.node if node.output[0] == "encoder_fine_map_half"]
    assert names == ["backbone.block/Sub_encoder_fine_map_half"]


def test_float16_features_are_not_rounded_again() -> None:
    model = graph_for(RTX)
    assert with_half_features(model, INTERFACE) == model


ROUNDING = with_half_features(
    parsed(
        """rounding (float[batch,1] before, float[batch,1] after) => (float[batch,1] difference) {
            both = Concat <axis = 0> (before, after)  dates = Reshape (both, stacked)
            first = Gather (dates, zero)  second = Gather (dates, one)
            difference = Sub (second, first)
        }""",
        {"zero": 0, "one": 1, "stacked": [2, -1, 1]},
    ),
    INTERFACE,
)


@given(st.lists(st.floats(-60000, 60000, width=32).filter(lambda x: abs(x) >= 2**-14 or x == 0), min_size=1))
def test_values_are_rounded_to_the_nearest_float16(values: list[float]) -> None:
    x = np.array(values, np.float32)[:, None]
    engine = OnnxRuntimeEngine(ROUNDING.SerializeToString(), len(x))
    (found,) = engine.infer({"before": np.zeros_like(x), "after": x}).values()
    with np.errstate(divide="ignore"):
        step = 2.0 ** np.floor(np.log2(np.abs(x.astype(np.float64)))) * 2**-10
    np.testing.assert_array_equal(found, found.astype(np.float16))
    assert (np.abs(found.astype(np.float64) - x) <= step / 2).all()


# The stages


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Tile]:
    return list(TileSet.open(write_tiles(tmp_path_factory.mktemp("few") / "tiles", 3), SIDE).tiles())


def quiet() -> StageLog:
    return StageLog(Console(quiet=True))


def graph_file(name: str, file: str, precision: str, **more: Any) -> GraphFile:
    return GraphFile(name=name, file=f"graphs/{file}.onnx", precision=precision, size=1, **more)


def written(root: Path, model: onnx.ModelProto, precision: str = "float32") -> WrittenGraph:
    (root / "graphs").mkdir()
    (root / "graphs/float.onnx").write_bytes(b"is not read again")
    return WrittenGraph(graph_file("float", "float", precision), model)


def test_graphs_are_split_only_on_request(tmp_path: Path, few: list[Tile]) -> None:
    graph, log = written(tmp_path, two_stage()), quiet()
    assert split_graphs(context_of(replace(REQUEST, split=False), tmp_path, few, log), [graph]) == [graph.file]
    assert [path.name for path in (tmp_path / "graphs").iterdir()] == ["float.onnx"] and not log.done


def test_parts_are_written_beside_the_graph_and_logged(tmp_path: Path, few: list[Tile]) -> None:
    log = quiet()
    (graph,) = split_graphs(context_of(REQUEST, tmp_path, few, log), [written(tmp_path, two_stage())])
    encoder, head = "graphs/float_encoder.onnx", "graphs/float_head.onnx"
    assert graph.split == SplitEntry(encoder, head, encoder, head)
    assert [f.name for f in graph.features] == ["feature1", "feature2"]
    for file in (encoder, head):
        onnx.checker.check_model(onnx.load(tmp_path / file), full_check=True)
    ((name, _, finding),) = log.done
    assert name == "split float" and "features in float16" in finding and "100.000 % of pixels agree" in finding


def scaled_head(parts: SplitGraph, factor: float) -> SplitGraph:
    """Returns ``parts`` with the last weight of the head multiplied by ``factor``."""
    (item,) = (item for item in parts.head.graph.initializer if item.name == "four_w")
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(factor), item.name))
    return parts


@pytest.mark.parametrize(("precision", "factor"), [("float32", 1.01), ("int8", 1.01), ("int8", np.nan)])
def test_parts_that_do_not_reproduce_the_graph_fail_the_build(
    tmp_path: Path, few: list[Tile], monkeypatch: pytest.MonkeyPatch, precision: str, factor: float
) -> None:
    monkeypatch.setattr(splitting, "split_graph", lambda *a: scaled_head(split_graph(*a), factor))
    with pytest.raises(GateFailed, match="the graph 'float' in two parts differs from the whole one"):
        split_graphs(context_of(REQUEST, tmp_path, few), [written(tmp_path, two_stage(), precision)])
    assert [path.name for path in (tmp_path / "graphs").iterdir()] == ["float.onnx"]


def test_features_that_overflow_float16_fail_the_build(tmp_path: Path, few: list[Tile]) -> None:
    model = two_stage()
    (item,) = (item for item in model.graph.initializer if item.name == "fine_w")
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(1e5), item.name))
    with (
        np.errstate(over="ignore"),
        pytest.raises(GateFailed, match="in two parts with features kept in float16 differs from the whole one"),
    ):
        split_graphs(context_of(REQUEST, tmp_path, few), [written(tmp_path, model)])


# Engines


def test_target_with_plans_compiles_whole_graph_encoder_and_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[bytes, PlanOptions]] = []

    def compile_plan(graph: bytes, options: PlanOptions, **_: object) -> Plan:
        compiled.append((graph, options))
        bound = PlanCompatibility(
            vendor="rtx", vendor_version="1.2", compute_capabilities=("sm86",), platform="linux-x86_64"
        )
        layers = PlanLayers([ProfileLayers([KERNEL] * count, 100 * count) for count in (1, 2)])
        return Plan(
            data=b"plan of " + graph,
            compatibility=bound,
            seconds=1.0,
            network_layers=3,
            quantize_layers=0,
            dequantize_layers=0,
            layers=layers,
            profiles=described(options.profiles, layers),
        )

    monkeypatch.setattr(engines, "compile_plan", compile_plan)
    (tmp_path / "graphs").mkdir()
    for name in ("float", "int8", "int8_encoder", "int8_head"):
        (tmp_path / f"graphs/{name}.onnx").write_bytes(name.encode())
    parts = ("graphs/int8_encoder.onnx", "graphs/int8_head.onnx")
    graphs = [
        graph_file("float", "float", "float32"),
        graph_file("rtx", "int8", "int8+float16", split=SplitEntry(*parts, *parts)),
    ]
    log = quiet()
    request = replace(REQUEST, requested=(parse_target("rtx-sm86-int8"),))
    float_entry, entry = engines.make_engines(context_of(request, tmp_path, log=log), graphs, NO_NETWORK)
    assert float_entry.split is None
    assert entry.split == SplitEntry("engines/rtx-sm86-int8_encoder.plan", "engines/rtx-sm86-int8_head.plan", *parts)
    assert (tmp_path / entry.split.head).read_bytes() == b"plan of int8_head"
    assert entry.profiles == [PlanProfile((1, 1, 1), 100, 1, 30), PlanProfile((4, 4, 4), 200, 2, 60)]
    records = [decode_plan_record(path.name, path.read_bytes()) for path in (tmp_path / "evidence").iterdir()]
    assert {record.part for record in records} == {"whole", "encoder", "head"}
    assert {record.precision for record in records} == {"int8+float16"}
    assert [graph for graph, _ in compiled] == [b"int8", b"int8_encoder", b"int8_head"]
    assert {o.profiles for _, o in compiled} == {((1, 1, 1), (4, 4, 4))}
    assert [name for name, *_ in log.done] == [
        "compile rtx-sm86-int8", "compile rtx-sm86-int8 encoder", "compile rtx-sm86-int8 head",
    ]  # fmt: skip


def test_bf16_engine_is_not_split(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    parts = SplitEntry("e", "h", "e", "h")
    graphs = [
        graph_file(name, name, precision, split=parts)
        for name, precision in (("float", "float32"), ("openvino", "int8"))
    ]
    request = replace(REQUEST, requested=tuple(map(parse_target, ("openvino", "openvino-bf16", "openvino-int8-bf16"))))
    found = engines.make_engines(context_of(request, tmp_path), graphs, NO_NETWORK)
    assert {entry.name: entry.split for entry in found} == {
        "cpu-float32": parts, "openvino": parts, "openvino-bf16": None, "openvino-int8-bf16": None,
    }  # fmt: skip
