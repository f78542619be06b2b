"""Tests models for Deepness with a loader that follows the plugin's documentation."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import parser
from PIL import Image

from misgnet_export.cli.main import main
from misgnet_export.integrations.publish import stacked_graph as module
from misgnet_export.integrations.publish.deepness import deepness_metadata
from misgnet_export.integrations.publish.run import publish_bundle
from misgnet_export.integrations.publish.stacked_graph import stacked_graph
from misgnet_runtime.api import open_bundle
from misgnet_runtime.bundle import Interface, Normalization, read_bundle
from misgnet_runtime.cli.main import main as run
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.pixels import PixelFormat
from support.bundles import FORMATS, TILE, bands_bundle, edit, images, images_of, make_bundle, write_image
from support.commands import exit_code
from support.deepness import DeepnessModel


def published(bundle: Path, engine: str | None = None) -> DeepnessModel:
    out = bundle.with_name("published")
    publish_bundle(bundle, "deepness", out, engine=engine)
    return DeepnessModel(out / "change.onnx")


@pytest.mark.parametrize("engine", ["cpu", "cpu-float32"])
def test_model_gives_the_mask_of_predict(tmp_path: Path, engine: str) -> None:
    bundle, (before, after) = make_bundle(tmp_path / "bundle"), images(TILE, TILE, seed=7)
    model = published(bundle, engine)
    assert (model.input_shape, model.output_shape) == (["batch", 6, TILE, TILE], ["batch", 1, TILE, TILE])
    pair = [write_image(tmp_path / f"{name}.png", image) for name, image in (("before", before), ("after", after))]
    words = ("misgnet-run", "predict", bundle, *pair, "-o", tmp_path / "mask.png", "--engine", engine)
    assert exit_code(run, *words) == 0
    expected = np.asarray(Image.open(tmp_path / "mask.png")) > 0
    stacked = np.concatenate([before, after], -1)
    if engine == "cpu":
        probability = model.probability(stacked[None])
        assert (probability == 0.5).any(), "some pixels lie on the threshold: they are unchanged"
    assert 0 < expected.mean() < 1 and np.array_equal(model.mask(stacked[None])[0], expected)
    assert np.array_equal(model.mask(np.stack([stacked, stacked[::-1]]))[1], expected[::-1]), "a batch of two"


@pytest.mark.parametrize("pixels", FORMATS, ids=str)
def test_other_bands_and_samples(tmp_path: Path, pixels: PixelFormat) -> None:
    bundle = bands_bundle(tmp_path / "bundle", pixels)
    before, after = images_of(pixels, TILE, TILE, seed=7)
    with open_bundle(bundle) as session:
        expected = session.predict(before, after).mask
    model = published(bundle)
    assert model.input_shape[1] == 2 * pixels.bands and 0 < expected.mean() < 1
    assert np.array_equal(model.mask(np.concatenate([before, after], -1)[None])[0], expected)


def test_parameters_are_those_of_the_bundle(tmp_path: Path) -> None:
    bundle = edit(make_bundle(tmp_path / "bundle"), lambda m: m.update(threshold=0.37, overlap=20))
    model = {"source": "onnx", "name": "net.onnx", "resolution": 0.5}
    found = published(edit(bundle, lambda m: m.update(model=model)))
    assert found.metadata == {
        "model_type": "Segmentor",
        "class_names": {"0": "unchanged", "1": "changed"},
        "tiles_size": TILE,
        "tile_size": TILE,
        "tiles_overlap": 32,  # 20 of 64 px, rounded up
        "standardization_mean": [0.0] * 6,
        "standardization_std": [1.0] * 6,
        "seg_thresh": float(np.nextafter(np.float32(0.37), np.float32(1))),
        "seg_small_segment": 0,
        "resolution": 50.0,  # cm
    }
    assert "resolution" not in deepness_metadata(read_bundle(make_bundle(tmp_path / "other")).manifest)


def test_metadata_of_the_graph_are_kept(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    graph = onnx.load(bundle / "graphs/int8.onnx")
    onnx.helper.set_model_props(graph, {"misgnet_licence": "CC-BY-4.0", "resolution": "1"})
    data = graph.SerializeToString()
    (bundle / "graphs/int8.onnx").write_bytes(data)
    edit(bundle, lambda m: m.update(files=[restated(entry, bundle) for entry in m["files"]]))
    published(bundle)
    props = {p.key: p.value for p in onnx.load(tmp_path / "published/change.onnx").metadata_props}
    assert props["misgnet_licence"] == "CC-BY-4.0" and json.loads(props["model_type"]) == "Segmentor"
    assert "resolution" not in props, "only this project's own metadata"


def restated(entry: dict[str, Any], bundle: Path) -> dict[str, Any]:
    data = (bundle / entry["path"]).read_bytes()
    return entry | {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_graph_that_gives_other_masks_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def darker(model: onnx.ModelProto, interface: Interface, divided_by: float) -> onnx.ModelProto:
        return stacked_graph(model, interface, divided_by / 2)

    bundle = make_bundle(tmp_path / "bundle")
    monkeypatch.setattr(module, "stacked_graph", darker)
    words = ("misgnet-export", "publish", bundle, "--as", "deepness", "-o", tmp_path / "out")
    assert exit_code(main, *words) == 3 and not (tmp_path / "out").exists()


def test_missing_onnx_prints_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    words = ("misgnet-export", "publish", make_bundle(tmp_path / "bundle"), "--as", "deepness", "-o", tmp_path / "out")
    assert exit_code(main, *words) == 5 and "pip install 'misgnet-export[export]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_readme_says_what_to_stack(tmp_path: Path) -> None:
    published(bands_bundle(tmp_path / "bundle", FORMATS[1]))
    text = (tmp_path / "published/README.md").read_text()
    assert "gdalbuildvrt -separate pair.vrt before.tif after.tif" in text
    assert "8 bands: band 1, band 2, band 3, band 4 of BEFORE, then those of AFTER" in text and "16-bit" in text


GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
net ({kind}[{batch}{shape}] before, {kind}[{batch}{shape}] after) => ({output}) {{
    first = Cast <to = 1> (before)
    second = Cast <to = 1> (after)
    difference = Sub (first, second)
    size = Abs (difference)
    mean = ReduceMean <axes = [{axis}], keepdims = 0> (size)
    most = Constant <value = float {{{most}}}> ()
    share = Div (mean, most)
    {end}
}}"""
ENDS = {
    "probability": "probability = Identity (share)",
    "logits": """
    channel = Constant <value = int64[1] {1}> ()
    half = Constant <value = float {0.3}> ()
    centred = Sub (share, half)
    up = Unsqueeze (centred, channel)
    down = Neg (up)
    logits = Concat <axis = 1> (down, up)""",
    "mask": """
    half = Constant <value = float {0.3}> ()
    above = Greater (share, half)
    mask = Cast <to = 2> (above)""",
}


def graph_of(interface: Interface, batch: str = "batch,") -> onnx.ModelProto:
    """Returns the mean absolute difference over the bands with the inputs and the output of ``interface``."""
    (output,) = interface.outputs()
    kind = {"uint8": "uint8", "float32": "float"}
    sizes = ",".join(map(str, output.shape[1:]))
    text = GRAPH.format(
        kind=kind[interface.input], batch=batch, shape=",".join(map(str, interface.inputs()[0].shape[1:])),
        output=f"{kind[output.dtype]}[{batch}{sizes}] {output.name}", axis=3 if interface.raw else 1,
        most=255 if interface.raw else 3, end=ENDS[interface.output],
    )  # fmt: skip
    return parser.parse_model(text)


def probabilities(interface: Interface, batch: str = "batch,") -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the probability of one tile, (T, T), from the bundle's graph and from the published one."""
    model, (before, after) = graph_of(interface, batch), images(1, TILE, TILE, seed=3)
    with ChangeDetector(OnnxRuntimeEngine(model.SerializeToString(), interface.max_batch), interface) as detector:
        expected = detector.probability(before, after)[0]
    stacked = stacked_graph(model, interface, 255).SerializeToString()
    values = np.float32(np.concatenate([before, after], -1) * 1.0 / 255.0).transpose(0, 3, 1, 2)
    with OnnxRuntimeEngine(stacked, interface.max_batch) as engine:
        return expected, engine.infer({"images": values})["change"][0, 0]


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("output", ["probability", "logits", "mask"])
def test_every_interface_is_wrapped(kind: Any, output: Any) -> None:
    how = Normalization(1 / 255, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    expected, found = probabilities(Interface(TILE, 4, kind, output, normalization=how))
    assert expected.std() > 0.01 and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_graph_of_single_pairs_keeps_its_batch() -> None:
    interface = Interface(TILE, 1)
    assert np.array_equal(*probabilities(interface, batch="1,"))
    (images_in,) = stacked_graph(graph_of(interface, "1,"), interface, 255).graph.input
    assert [size.dim_value for size in images_in.type.tensor_type.shape.dim] == [1, 6, TILE, TILE]
