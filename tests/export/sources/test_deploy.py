"""Tests the preprocessing and postprocessing that are added to the graph of a foreign network."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import parser

pytest.importorskip("torch", reason="the networks of this test are PyTorch's")

from misgnet_calibration.onnx_graph import Graph, scope
from misgnet_export.graph.algebra import fold_normalisation
from misgnet_export.graph.simplify import simplify_graph
from misgnet_export.sources.declaration import Declaration
from misgnet_export.sources.deploy import deploy
from misgnet_export.sources.options import parse_output
from misgnet_export.sources.reference import network_inputs, probability
from misgnet_runtime.bundle import IMAGENET_MEAN, IMAGENET_STD, Interface, Normalization
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.inference.detector import ChangeDetector
from support.foreign_networks import (
    CHANGED,
    IOS,
    KINDS,
    ForeignNetwork,
    Io,
    export,
    pairs_of_tiles,
    plain_loop,
    raw_network,
)

TILE = 32
NONE = Normalization(1.0, (0.0,) * 3, (1.0,) * 3)


@cache
def exported(io: Io, kind: str, bands: int = 3, *, squeezed: bool = False) -> onnx.ModelProto:
    return export(ForeignNetwork(io, kind, bands, squeezed=squeezed), TILE, torchscript=True)


def declared(model: onnx.ModelProto, io: Io, kind: str, **more: Any) -> Declaration:
    changed = CHANGED if kind.startswith("classes") else ()
    names = tuple(value.name for value in model.graph.input)
    return Declaration(
        io=io, inputs=names, output_name=model.graph.output[0].name, output=parse_output(kind), changed=changed, **more
    )


def interface_of(what: Declaration, **options: Any) -> Interface:
    given = {"input": what.samples, "bands": what.bands, "samples": what.samples, "normalization": what.normalization}
    return Interface(TILE, 4, **{**given, **options})


def computed(
    model: onnx.ModelProto, what: Declaration, before: NDArray[Any], after: NDArray[Any], **options: Any
) -> NDArray[np.float32]:
    """Returns what the deployed graph outputs, as the runtime reads it."""
    interface = interface_of(what, **options)
    graph = deploy(model, what, interface).SerializeToString()
    with ChangeDetector(OnnxRuntimeEngine(graph, interface.max_batch), interface) as detector:
        return detector.probability(before, after)


def assert_same_mask(found: NDArray[Any], expected: NDArray[Any]) -> None:
    clear = np.abs(expected - 0.5) > 1e-4
    assert clear.mean() > 0.9 and 0.05 < (expected > 0.5).mean() < 0.95, "the test shows little"
    assert np.array_equal((found > 0.5)[clear], (expected > 0.5)[clear])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("io", IOS)
def test_deployed_graph_and_reference_output_what_a_plain_loop_over_the_file_does(io: Io, kind: str) -> None:
    model, (before, after) = exported(io, kind), pairs_of_tiles(3, TILE)
    expected = plain_loop(model, before, after, io, kind, IMAGENET_MEAN, IMAGENET_STD)
    what = declared(model, io, kind)
    for form in ("uint8", "float32"):
        found = computed(model, what, before, after, input=form)
        assert np.abs(found - expected).max() < 1e-5
        assert_same_mask(found, expected)
        assert_same_mask(computed(model, what, before, after, input=form, output="mask"), expected)
        if not kind.startswith("probability"):
            logits = computed(model, what, before, after, input=form, output="logits")
            assert np.abs(logits - expected).max() < 1e-5
    (output,) = _run(model, dict(zip(what.inputs, network_inputs(before, after, what), strict=True)))
    assert np.abs(probability(output, what, TILE) - expected).max() < 1e-5


@pytest.mark.parametrize("bands", [1, 4, 13])
@pytest.mark.parametrize("samples", ["uint8", "uint16"])
def test_other_bands_and_16_bit_samples(bands: int, samples: Any) -> None:
    io: Io = IOS[bands % 3]
    model, (before, after) = exported(io, "logit1", bands), pairs_of_tiles(2, TILE, bands, samples)
    largest, mean, std = float(np.iinfo(samples).max), (0.4,) * bands, (0.25,) * bands
    expected = plain_loop(model, before, after, io, "logit1", mean, std, largest)
    what = declared(
        model, io, "logit1", bands=bands, samples=samples, normalization=Normalization(1 / largest, mean, std)
    )
    for form in (samples, "float32"):
        assert np.abs(computed(model, what, before, after, input=form) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "form"),
    [("logit1", "probability"), ("logit1", "mask"), ("logit1", "logits"), ("probability1", "probability"),
     ("probability1", "mask")],
)  # fmt: skip
def test_output_without_an_axis_of_one_channel(kind: str, form: Any) -> None:
    model, (before, after) = exported("pair", kind, squeezed=True), pairs_of_tiles(2, TILE)
    expected = plain_loop(model, before, after, "pair", kind, IMAGENET_MEAN, IMAGENET_STD)
    found = computed(model, declared(model, "pair", kind), before, after, output=form)
    assert_same_mask(found, expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_network_of_raw_pixels_with_channels_last(dtype: Any) -> None:
    model, (before, after) = raw_network(dtype, TILE), pairs_of_tiles(2, TILE, dtype=dtype)
    what = declared(model, "pair", "probability1", layout="NHWC", dtype=dtype, samples=dtype, normalization=NONE)
    expected = np.abs(before.astype(np.float64) - after).mean(-1) / np.iinfo(dtype).max
    for form in (dtype, "float32"):
        assert np.abs(computed(model, what, before, after, input=form) - expected).max() < 1e-6
    graph = deploy(model, what, interface_of(what))
    types = [attribute.i for node in graph.graph.node if node.op_type == "Cast" for attribute in node.attribute]
    assert types == [onnx.TensorProto.FLOAT] * 2, "pixels are converted to float once"
    (output,) = _run(model, dict(zip(what.inputs, network_inputs(before, after, what), strict=True)))
    assert np.abs(probability(output, what, TILE) - expected).max() < 1e-6


def test_integers_that_the_network_itself_computes_with_are_converted_back() -> None:
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 20]>
        g (uint8[batch,3,{TILE},{TILE}] a, uint8[batch,3,{TILE},{TILE}] b) => (float[batch,1,{TILE},{TILE}] y) {{
            most = Max (a, b)
            numbers = Cast <to = 1> (most)
            axes = Constant <value = int64[1] {{1}}> ()
            mean = ReduceMean <keepdims = 1> (numbers, axes)
            white = Constant <value = float {{255}}> ()
            y = Div (mean, white)
        }}""")
    before, after = pairs_of_tiles(2, TILE)
    what = declared(model, "pair", "probability1", dtype="uint8", normalization=NONE)
    expected = np.maximum(before, after).mean(-1) / 255
    assert np.abs(computed(model, what, before, after) - expected).max() < 1e-6


def test_large_logits_of_classes_do_not_overflow() -> None:
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 20]>
        g (float[batch,2,{TILE},{TILE}] x) => (float[batch,4,{TILE},{TILE}] y) {{
            y = Concat <axis = 1> (x, x)
        }}""")
    what = replace(declared(model, "stacked", "classes:4", bands=1, normalization=Normalization(1.0, (0.0,), (1.0,))))
    before, after = (np.full((1, TILE, TILE, 1), value, np.uint8) for value in (0, 250))
    found = computed(model, what, before, after, output="logits")
    assert np.array_equal(found, np.ones_like(found))
    assert np.array_equal(computed(model, what, after, before), np.zeros_like(found))


def test_probabilities_cannot_become_logits() -> None:
    for kind in ("probability1", "probability2"):
        model = exported("pair", kind)
        with pytest.raises(UsageError, match=f"the network outputs probabilities \\({kind}\\); use --output-form prob"):
            deploy(model, declared(model, "pair", kind), Interface(TILE, 4, output="logits"))


def test_output_of_another_size_is_refused() -> None:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 20]>
        g (float[batch,3,h,w] a, float[batch,3,h,w] b) => (float[batch,3,h2,w2] y) {
            d = Sub (a, b)
            y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (d)
        }""")
    with pytest.raises(InputError, match="'y' is 3 x 16 x 16 for each pair of 32 x 32 px tiles, but classes:3 needs"):
        deploy(model, declared(model, "pair", "classes:3"), Interface(TILE, 4))


def test_network_that_does_not_run_on_such_images_is_an_input_error() -> None:
    model = exported("pair", "logits2")
    with pytest.raises(InputError, match="does not run on"):
        deploy(model, declared(model, "pair", "logits2", bands=4), Interface(TILE, 4, bands=4))


def test_names_of_the_network_are_kept_and_its_tensors_renamed_if_they_clash() -> None:
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 20]>
        g (float[batch,3,{TILE},{TILE}] after, float[batch,3,{TILE},{TILE}] before)
        => (float[batch,3,{TILE},{TILE}] probability) {{
            sum = Add (before, after)
            probability = Relu (sum)
        }}""")
    model.graph.node[0].name = "/encoder/Add"
    what = declared(model, "pair", "classes:3")
    assert what.inputs == ("after", "before")
    found = deploy(model, what, Interface(TILE, 4))
    graph = Graph(found)  # raises if a name is not unique
    assert [value.name for value in found.graph.input] == ["before", "after"]
    assert graph.by_name["/encoder/Add"].op_type == "Add" and all(node.name for node in graph.nodes)
    assert {scope(node) for node in graph.nodes} == {"input", "encoder", "", "output"}


def test_nodes_of_torch_export_are_named_after_their_modules() -> None:
    model = export(ForeignNetwork("pair", "logits2"), TILE)
    found = Graph(deploy(model, declared(model, "pair", "logits2"), Interface(TILE, 4)))
    scopes = {scope(node) for node in found.nodes if node.op_type == "Conv"}
    assert scopes == {"encoder.0", "smooth", "head"}


def test_dates_that_are_joined_in_the_network_are_normalised_once() -> None:
    """The graph has the form that the rewrites of MISGNet's graph match."""
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 20]>
        g (float[batch,3,{TILE},{TILE}] a, float[batch,3,{TILE},{TILE}] b) => (float[batch,2,{TILE},{TILE}] y)
        <float[2,3,1,1] w = {{1, 2, 3, 4, 5, 6}}>
        {{
            both = Concat <axis = 0> (a, b)
            maps = Conv (both, w)
            first, second = Split <axis = 0, num_outputs = 2> (maps)
            y = Sub (first, second)
        }}""")
    what = declared(model, "pair", "logits2")
    graph = simplify_graph(deploy(model, what, Interface(TILE, 4)))
    folded = [node.op_type for node in fold_normalisation(graph).graph.node]
    before = [node.op_type for node in graph.graph.node]
    assert before.count("Mul") == 2 and folded.count("Mul") == 0


def _run(model: onnx.ModelProto, arrays: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    import onnxruntime

    return list(onnxruntime.InferenceSession(model.SerializeToString()).run(None, arrays))
