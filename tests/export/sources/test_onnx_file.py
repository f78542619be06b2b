"""Tests the source for ONNX files: what is found in them, any batch, opsets, the reference, and whole builds."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

torch = pytest.importorskip("torch", reason="the networks of this test are PyTorch's")

from misgnet_export.sources import open_source
from misgnet_export.sources.declaration import Found
from misgnet_export.sources.onnx_batch import random_inputs, to_opset, with_any_batch
from misgnet_export.sources.onnx_batch_axis import Position, regrouped
from misgnet_export.sources.onnx_file import OnnxFile, inspect
from misgnet_export.sources.options import ModelOptions
from misgnet_runtime.bundle import IMAGENET_MEAN, IMAGENET_STD, Interface, ModelEntry
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.options import make
from support.foreign_networks import (
    ForeignNetwork,
    export,
    of_single_pairs,
    pairs_of_tiles,
    plain_loop,
    raw_network,
)

TILE = 64
ENOUGH = {"model_output": "logits2", "normalization": "imagenet"}


def options(**given: Any) -> ModelOptions:
    return make(ModelOptions, given)


def opened(model: onnx.ModelProto, folder: Path, **given: Any) -> OnnxFile:
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    source = open_source(str(path), options(**given))
    assert isinstance(source, OnnxFile)
    return source


def probability_of(source: OnnxFile, tiles: int = 3, **options: Any) -> Any:
    """Returns what the reference outputs for some tiles, and the plain loop."""
    what = source.declaration
    interface = Interface(source.fixed_tile or TILE, 4, normalization=what.normalization, **options)
    before, after = pairs_of_tiles(tiles, interface.tile, what.bands)
    expected = plain_loop(source.model, before, after, what.io, str(what.output), IMAGENET_MEAN, IMAGENET_STD)
    return source.float_model(interface).predict(before, after), expected


@pytest.fixture(scope="module")
def of_open_cd() -> onnx.ModelProto:
    """A file as Open-CD's ``tools/export.py`` makes it: one input, a batch of 1, opset 11."""
    return export(ForeignNetwork("stacked", "logits2"), TILE, opset=11, dynamic=False, torchscript=True)


def test_file_of_open_cd_needs_three_options(of_open_cd: onnx.ModelProto, tmp_path: Path) -> None:
    source = opened(of_open_cd, tmp_path, model_io="stacked", **ENOUGH)
    assert source.fixed_tile == TILE and source.largest_batch is None
    count = sum(weight.numel() for weight in ForeignNetwork("stacked", "logits2").parameters())
    assert source.entry.parameters is not None and abs(source.entry.parameters - count) < 64  # batch norms are folded
    assert _without_parameters(source.entry) == ModelEntry(
        source="onnx", name="net.onnx", io="stacked", layout="NCHW", output="logits2"
    )
    assert source.sha256 == hashlib.sha256((tmp_path / "net.onnx").read_bytes()).hexdigest()
    assert source.findings[0].startswith("ONNX file of opset 11, converted to 20, 29 nodes, ")
    assert source.findings[-1] == "its batch of 1 was made dynamic; batches give the same output as single pairs"
    found, expected = probability_of(source)
    assert np.abs(found - expected).max() < 1e-5


def _without_parameters(entry: ModelEntry) -> ModelEntry:
    return msgspec.structs.replace(entry, parameters=None)


def test_all_that_the_file_does_not_show_is_asked_for(of_open_cd: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        opened(of_open_cd, tmp_path)
    assert str(caught.value).endswith(
        "2 things cannot be found out; add --model-output logits2 (or probability2, classes:2; the output has 2 "
        "channels) --normalization imagenet (or half, unit, none, or --mean and --std)"
    )


def test_options_of_a_factory_are_refused(of_open_cd: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--weights and --state-key are for a PyTorch factory"):
        opened(of_open_cd, tmp_path, weights=Path("w.pth"), **ENOUGH)


def test_patterns_and_resolution_travel_with_the_model(of_open_cd: onnx.ModelProto, tmp_path: Path) -> None:
    source = opened(of_open_cd, tmp_path, keep_float32=("/head*",), resolution=0.5, **ENOUGH)
    model = source.float_model(Interface(TILE, 4))
    assert source.entry.resolution == 0.5
    assert model.reference == "ONNX Runtime float32" and model.features is None and not model.splits
    assert "/head*" in str(model.known)


# What a graph shows


def value(name: str, dims: list[Any], kind: int = onnx.TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def shown(inputs: list[onnx.ValueInfoProto], output: list[Any] | None, **given: Any) -> Found:
    graph = helper.make_graph([], "g", inputs, [value("y", output or ["a"])])
    return inspect(helper.make_model(graph), options(**given), "net.onnx")


@pytest.mark.parametrize(
    ("inputs", "output", "expected"),
    [
        ([[1, 6, 512, 512]], [1, 2, 512, 512], {"io": "stacked", "bands": 3, "tile": 512, "batch": 1, "channels": 2}),
        ([["n", 26, "h", "w"]], ["n", 1, "h", "w"], {"io": "stacked", "bands": 13, "channels": 1}),
        ([["n", 4, 64, 64]] * 2, ["n", 64, 64], {"io": "pair", "bands": 4, "tile": 64, "channels": 1}),
        ([["n", 2, 3, 64, "w"]], ["n", 5, 64, 64], {"io": "time", "bands": 3, "tile": 64, "channels": 5}),
        ([["n", 64, 64, 3]] * 2, ["n", 64, 64, 2],
         {"io": "pair", "bands": 3, "tile": 64, "channels": 2, "layout": "NHWC"}),
        ([["n", "h", "w", 6]], None, {"io": "stacked", "bands": 3, "layout": "NHWC"}),
        ([["n", 2, 64, 64, 1]], None, {"io": "time", "bands": 1, "tile": 64, "layout": "NHWC"}),
        ([["n", "c", "h", "w"]], ["n", "k", "h", "w"], {"io": "stacked"}),
    ],
)  # fmt: skip
def test_inputs_and_output_show_what_the_network_is(
    inputs: list[list[Any]], output: list[Any] | None, expected: dict[str, Any]
) -> None:
    found = shown([value(f"x{index}", dims) for index, dims in enumerate(inputs)], output)
    names = tuple(f"x{index}" for index in range(len(inputs)))
    default = Found(inputs=names, outputs=("y",), layout="NCHW", dtype="float32")
    assert found == replace(default, **expected)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([value("x", [1, 5, 64, 64])], "one input of 5 channels, which cannot hold two dates"),
        ([value("x", [1, 6, 64, 128])], "has images of 128 x 64 px; tiles are square, up to 16384 px"),
        ([value("x", [1, 6, 1 << 40, 1 << 40])], "tiles are square, up to 16384 px"),
        ([value("x", [4, 6, 64, 64])], "has a fixed batch of 4; export it with a batch of 1, or a dynamic one"),
        ([value("x", [1, 64])], r"has the shape \(1, 64\); expected images"),
        ([value("x", [1, 3, 3, 64, 64])], r"has the shape \(1, 3, 3, 64, 64\); expected images"),
        ([value("x", [1, 6, 64, 64], onnx.TensorProto.FLOAT16)], "input 'x' is float16; images are float"),
        ([value("x", [1, 6, 64, 64], onnx.TensorProto.INT64)], "input 'x' is int64; images are float"),
        ([value("x", [1, 3, 64, 64]), value("y", [1, 4, 64, 64])], "its inputs differ in type or size"),
        ([value("x", [1, 2, 3, 64, 64])] * 2, "two inputs with both dates in each"),
        ([], "has no inputs or no outputs"),
    ],
)
def test_graphs_that_read_no_pairs_of_images_are_refused(inputs: list[onnx.ValueInfoProto], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        shown(inputs, None)


def test_inputs_that_are_not_named_are_refused() -> None:
    inputs = [value(name, [1, 3, 64, 64]) for name in ("a", "b", "mask")]
    assert shown(inputs, None).io is None, "resolve asks for names"
    with pytest.raises(InputError, match="has inputs that --model-inputs does not name: 'mask'"):
        shown(inputs, None, model_inputs="a,b")


# Any batch


def test_batch_that_cannot_be_changed_stays_1(
    of_open_cd: onnx.ModelProto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        source = opened(of_single_pairs(of_open_cd), tmp_path, **ENOUGH)
    assert source.largest_batch == 1 and source.findings[-1] == "it accepts only a batch of 1"
    assert "accepts only a batch of 1, and its graph cannot be changed" in caplog.text
    found, expected = probability_of(source)
    assert np.abs(found - expected).max() < 1e-5, "pair by pair"


def test_batch_that_is_only_declared_dynamic_is_found(tmp_path: Path, of_open_cd: onnx.ModelProto) -> None:
    """Exporters declare a symbolic batch also where constants inside the graph fix it."""
    model = of_single_pairs(of_open_cd)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    assert opened(model, tmp_path, **ENOUGH).largest_batch == 1
    plain = onnx.load_from_string(of_open_cd.SerializeToString())
    plain.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    source = opened(plain, tmp_path, **ENOUGH)
    assert source.largest_batch is None
    assert source.findings[-1] == "batches give the same output as single pairs"


def test_network_of_other_tiles_than_the_default_is_accepted(tmp_path: Path) -> None:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[b,6,h,w] x) => (float[b,2,h,w] y) <float[1,1,96,1] rows = {0}, int64[2] classes = {1, 4}> {
            z = Gather <axis = 1> (x, classes)
            y = Add (z, rows)
        }""")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((1, 1, 96, 1), np.float32), "rows"))
    source = opened(model, tmp_path, **ENOUGH)
    assert source.findings[-1] == "batches were not tried: it does not run on tiles of 256 px"
    assert source.float_model(Interface(96, 4)).export()
    with pytest.raises(InputError, match="does not run on"):
        source.float_model(Interface(64, 4))


def of_text(body: str, constants: dict[str, Any]) -> onnx.ModelProto:
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,8,8] x) => (float[1,1,h,w] y) {{ {body} }}""")
    model.graph.initializer.extend(numpy_helper.from_array(np.array(array), name) for name, array in constants.items())
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("r = Reshape (x, whole) t = Transpose <perm = [0, 2, 1]> (r) y = Reshape (t, out)",
         {"whole": [1, 2, 64], "out": [1, 1, 8, 16]}),
        ("r = Reshape (x, rest) y = Reshape (r, out)", {"rest": [1, -1], "out": [1, 1, 16, -1]}),
        ("""r = Reshape (x, merged) s = Softmax (r) b = Reshape (s, back) c = Concat <axis = 1> (b, b)
            y = Reshape (c, out)""", {"merged": [16, 8], "back": [1, 2, 8, 8], "out": [1, 1, 16, 16]}),
        ("""c = Concat <axis = 0> (x, x) s = Reshape (c, dates) a = Gather <axis = 0> (s, which)
            y = Reshape (a, out)""",
         {"dates": [2, 1, 2, 64], "which": 1, "out": [1, 1, 8, 16]}),
        ('m = ReduceMean <axes = [1]> (x) y = Resize <mode = "linear"> (m, , , size)', {"size": [1, 1, 16, 16]}),
    ],
    ids=["whole shape", "rest of a shape", "batch merged with others", "batch behind the dates", "resize to a size"],
)  # fmt: skip
def test_batch_of_1_is_made_dynamic(body: str, constants: dict[str, Any]) -> None:
    assert any_batch_of(of_text(body, constants)) is not None


@pytest.mark.parametrize("kind", ["batch first", "windows"])
def test_batch_of_attention_is_made_dynamic(kind: str, tmp_path: Path) -> None:
    """PyTorch's attention moves the batch behind the positions and merges it with heads and windows."""
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.attention = torch.nn.Conv2d(6, 8, 8, 8), attention
            self.head = torch.nn.ConvTranspose2d(8, 2, 8, 8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.encoder(images)
            batch, channels, height, width = maps.shape
            if kind == "windows":
                grid = maps.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
                tokens = grid.reshape(-1, 16, channels)
            else:
                tokens = maps.flatten(2).transpose(1, 2)
            tokens = self.attention(tokens, tokens, tokens)[0]
            if kind == "windows":
                grid = tokens.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 5, 1, 3, 2, 4)
            else:
                grid = tokens.transpose(1, 2)
            return self.head(grid.reshape(batch, channels, height, width))

    target = tmp_path / "attention.onnx"
    torch.onnx.export(
        Network().eval(), torch.rand(1, 6, TILE, TILE), str(target), dynamo=False, opset_version=17, output_names=["y"]
    )
    source = opened(onnx.load(target), tmp_path, **ENOUGH)
    assert source.largest_batch is None and "made dynamic" in source.findings[-1]
    found, expected = probability_of(source)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("at", "start", "target", "expected"),
    [
        ((0, 1), [1, 16, 8, 8], [1, 16, 64], (0, 1)),
        ((1, 1), [64, 1, 16], [64, 4, 4], (1, 1)),  # (L, B, E) -> (L, B * heads, d)
        ((1, 1), [64, 4, 4], [64, 16], (0, 64)),  # (L, B * heads, d) -> (L * B, E)
        ((0, 64), [64, 16], [64, 1, 16], (1, 1)),  # (L * B, E) -> (L, B, E)
        ((1, 1), [9, 25, 16], [9, 100, 4], (1, 1)),  # (L, B * windows, E) -> (L, B * windows * heads, d)
        ((1, 1), [9, 100, 4], [225, 16], (0, 9)),  # -> (L * B * windows, E)
        ((0, 9), [225, 16], [9, 25, 16], (1, 1)),
        ((0, 2), [2, 4, 4], [2, 1, 4, 4], (1, 1)),  # dates
        ((0, 1), [16, 4], [64], (0, 1)),
        ((1, 1), [3, 1, 5], [5, 3], None),
    ],
)
def test_reshape_keeps_the_place_of_the_batch_in_memory(
    at: tuple[int, int], start: list[int], target: list[int], expected: tuple[int, int] | None
) -> None:
    assert regrouped(Position(*at), start, target) == (expected and Position(*expected))


def test_batches_that_influence_each_other_are_found() -> None:
    """A sum over the pairs before runs with any batch, but its output is another one."""
    body = "m = CumSum (x, axis) s = Add (x, m) y = Reshape (s, out)"
    assert any_batch_of(of_text(body, {"out": [1, 1, 8, 16], "axis": 0})) is None


def any_batch_of(model: onnx.ModelProto) -> onnx.ModelProto | None:
    bare = to_opset(model, 17, "net.onnx")
    return with_any_batch(bare, ("x",), "y", random_inputs((2, 8, 8), "float32", 1))


# Opsets


@pytest.mark.parametrize("opset", [12, 13, 15, 17, 20])
def test_older_opsets_are_converted(opset: int, tmp_path: Path) -> None:
    model = export(ForeignNetwork("pair", "logit1"), TILE, opset=opset, torchscript=True)
    source = opened(model, tmp_path, model_output="logit1", normalization="imagenet")
    found, expected = probability_of(source)
    assert np.abs(found - expected).max() < 1e-5
    exported = source.float_model(Interface(TILE, 4)).export()
    assert [one.version for one in exported.opset_import] == [20]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 21, 23, 25])
def test_newer_opsets_are_converted(opset: int, tmp_path: Path) -> None:
    model = export(ForeignNetwork("pair", "logit1"), None, opset=opset)
    source = opened(model, tmp_path, model_output="logit1", normalization="imagenet")
    assert source.fixed_tile is None
    found, expected = probability_of(source)
    assert np.abs(found - expected).max() < 1e-5


def test_operator_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    model = parser.parse_model("""<ir_version: 10, opset_import: ["" : 23]>
        g (float[b,2,64,64] x) => (float[b,2,64,64] y) { y = RMSNormalization (x, w) }""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(64, np.float32), "w"))
    with pytest.raises(InputError, match="opset 23, and onnx cannot convert its operator RMSNormalization to"):
        opened(model, tmp_path, model_output="logits2", normalization="none")


def test_network_of_raw_pixels_declares_only_its_output(tmp_path: Path) -> None:
    source = opened(raw_network("uint8", TILE), tmp_path, model_output="probability1")
    what = source.declaration
    assert (what.layout, what.dtype, what.bands, what.io) == ("NHWC", "uint8", 3, "pair")
    assert source.entry.layout == "NHWC" and source.entry.parameters == 1  # the number of white


def test_integers_and_double_precision_inside_are_accepted(tmp_path: Path) -> None:
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[b,6,{TILE},{TILE}] x) => (float[b,2,{TILE},{TILE}] y) <int64[2] classes = {{1, 4}}> {{
            sizes = Shape (x)
            exact = Cast <to = 11> (x)
            square = Mul (exact, exact)
            float = Cast <to = 1> (square)
            same = Reshape (float, sizes)
            y = Gather <axis = 1> (same, classes)
        }}""")
    source = opened(model, tmp_path, **ENOUGH)
    found, expected = probability_of(source)
    assert np.abs(found - expected).max() < 1e-5
    assert source.float_model(Interface(TILE, 4)).export()


def test_network_that_joins_both_dates_can_be_split(tmp_path: Path) -> None:
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 20]>
        g (float[b,3,{TILE},{TILE}] first, float[b,3,{TILE},{TILE}] second) => (float[b,3,{TILE},{TILE}] y)
        <int64[5] dates = {{2, -1, 3, {TILE}, {TILE}}}, int64 one = {{1}}, int64 zero = {{0}}> {{
            both = Concat <axis = 0> (first, second)
            maps = Relu (both)
            stacked = Reshape (maps, dates)
            a = Gather <axis = 0> (stacked, zero)
            b = Gather <axis = 0> (stacked, one)
            y = Sub (a, b)
        }}""")
    source = opened(model, tmp_path, model_output="classes:3", changed="1", normalization="imagenet")
    assert source.float_model(Interface(TILE, 4)).splits


def test_output_form_that_the_network_does_not_have_is_refused_at_once(tmp_path: Path) -> None:
    source = opened(raw_network("uint8", TILE), tmp_path, model_output="probability1")
    with pytest.raises(UsageError, match="--output-form is logits, but the network outputs probabilities"):
        source.float_model(Interface(TILE, 4, output="logits"))
