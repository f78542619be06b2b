"""Tests STAC Items of models by the published schemas, by pystac, and by stac-model if it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from misgnet_export.integrations.publish.run import publish_bundle
from misgnet_runtime.bundle import Interface
from support.bundles import (
    FLOAT,
    FORMATS,
    INT8,
    INTERFACE,
    RTX,
    TILE,
    bands_bundle,
    edit,
    make_bundle,
)
from support.stac_schemas import problems

ON_DEVICE = replace(
    RTX, name="jetson-orin", kind="tensorrt", file=INT8.graph, vendor_version="",
    compiled="to be compiled on the device",
)  # fmt: skip


def item_of(bundle: Path) -> dict[str, Any]:
    out = bundle.with_name("published")
    publish_bundle(bundle, "stac-mlm", out, force=True)
    found: dict[str, Any] = json.loads((out / "item.json").read_text())
    for asset in found["assets"].values():
        assert (out / asset["href"]).is_file()
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", engines=[FLOAT, INT8, RTX, ON_DEVICE])


def test_item_is_valid(bundle: Path) -> None:
    pytest.importorskip("pystac", reason="pystac is not installed")
    item = item_of(bundle)
    assert problems(item) == []
    del item["assets"]["cpu"]["mlm:artifact_type"]
    assert problems(item), "the schemas are applied"


@pytest.mark.parametrize("pixels", FORMATS, ids=str)
def test_item_of_other_bands_is_valid(tmp_path: Path, pixels: Any) -> None:
    pytest.importorskip("pystac", reason="pystac is not installed")
    item = item_of(bands_bundle(tmp_path / "bundle", pixels))
    assert problems(item) == []
    before, after = item["properties"]["mlm:input"]
    assert before["input"] == after["input"]
    assert before["input"] == {
        "shape": [-1, TILE, TILE, pixels.bands],
        "dim_order": ["batch", "height", "width", "channel"],
        "data_type": pixels.samples,
    }
    assert len(before["bands"]) == pixels.bands
    bands = item["assets"]["cpu-float32"]["raster:bands"]
    assert [(band["name"], band["data_type"]) for band in bands] == [(name, pixels.samples) for name in before["bands"]]


@pytest.mark.parametrize("output", ["probability", "logits", "mask"])
def test_normalised_input_and_other_outputs_are_described(tmp_path: Path, output: Any) -> None:
    pytest.importorskip("pystac", reason="pystac is not installed")
    item = item_of(make_bundle(tmp_path / "bundle", interface=Interface(TILE, 4, "float32", output)))
    assert problems(item) == []
    first, (result,) = item["properties"]["mlm:input"][0], item["properties"]["mlm:output"]
    assert first["input"]["shape"] == [-1, 3, TILE, TILE]
    assert first["value_scaling"][0] == {"type": "z-score", "mean": 0.485 * 255, "stddev": 0.229 * 255}
    assert result["name"] == output and "changed" in result["description"]
    assert len(result["result"]["shape"]) == len(result["result"]["dim_order"])


def test_engines_are_assets(bundle: Path) -> None:
    assets = item_of(bundle)["assets"]
    assert list(assets) == ["cpu-float32", "cpu", "rtx-sm86", "jetson-orin", "manifest"]
    cpu, rtx, jetson = assets["cpu"], assets["rtx-sm86"], assets["jetson-orin"]
    assert cpu["mlm:accelerator"] is None and cpu["mlm:artifact_type"] == "onnx" and cpu["misgnet:f1"] == 0.9
    assert cpu["href"] == "./bundle/graphs/int8.onnx"
    assert rtx["mlm:accelerator"] == "cuda" and rtx["mlm:compile_method"] == "aot"
    assert rtx["mlm:accelerator_summary"] == "sm86" and rtx["mlm:framework_version"] == "0.0.1"
    assert jetson["mlm:artifact_type"] == "onnx" and "to be compiled on the device" in jetson["title"]
    assert jetson["mlm:accelerator_constrained"] is True and "mlm:compile_method" not in jetson


def test_pystac_reads_the_model(bundle: Path) -> None:
    pystac = pytest.importorskip("pystac", reason="pystac is not installed")
    mlm = pytest.importorskip("pystac.extensions.mlm", reason="pystac has no MLM extension")
    item = pystac.Item.from_dict(item_of(bundle))
    model = mlm.MLMExtension.ext(item)
    assert model.mlm_name == "bundle" and [one.name for one in model.input] == ["before", "after"]
    assert model.output[0].result.shape == [-1, TILE, TILE]
    assert model.hyperparameters.to_dict() == {"threshold": 0.5, "tile": TILE, "overlap": TILE // 4}


def test_stac_model_accepts_the_properties(bundle: Path) -> None:
    schema = pytest.importorskip("stac_model.schema", reason="stac-model is not installed")
    model = schema.MLModelProperties(**item_of(bundle)["properties"])
    assert [one.name for one in model.input] == ["before", "after"] and model.tasks == {"semantic-segmentation"}


@pytest.mark.parametrize(
    ("licence", "expected"), [("not stated", None), ("CC-BY-4.0", "CC-BY-4.0"), ("for research only", "other")]
)
def test_licence_is_an_identifier_or_other(bundle: Path, licence: str, expected: str | None) -> None:
    pytest.importorskip("pystac", reason="pystac is not installed")
    item = item_of(edit(bundle, lambda m: m.update(licence=licence)))
    assert item["properties"].get("license") == expected and item["properties"]["misgnet:licence"] == licence
    assert problems(item) == []


def test_network_is_described(bundle: Path) -> None:
    model = {"source": "onnx", "name": "net.onnx", "parameters": 12, "resolution": 0.5}
    found = item_of(edit(bundle, lambda m: m.update(model=model)))["properties"]
    assert (found["gsd"], found["mlm:total_parameters"], found["mlm:architecture"]) == (0.5, 12, "unknown")
    assert "mlm:framework" not in found
    assert (
        item_of(make_bundle(bundle.with_name("old"), interface=INTERFACE))["properties"]["mlm:architecture"]
        == "MISGNet"
    )


def test_equal_bundles_give_equal_items(bundle: Path) -> None:
    assert item_of(bundle) == item_of(bundle)
