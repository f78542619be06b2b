"""Tests folders for the Hugging Face Hub: the model card as the Hub's library reads it, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from misgnet_export.integrations.publish.run import publish_bundle
from misgnet_runtime.errors import InputError
from support.bundles import FORMATS, bands_bundle, edit, make_bundle

SCORES = {"precision": 0.8, "recall": 0.85, "f1": 0.8245}
METRICS = {
    "reference": "PyTorch float32",
    "reference_scores": {"f1": 0.825},
    "evaluation_sha256": "a" * 64,
    "tiles": 80,
    "sources": 5,
    "labelled": True,
    "engines": [
        {
            "engine": "cpu-float32", "precision": "float32", "status": "run", "scores": {"f1": 0.825},
            "f1_drop_points": 0.0, "interval": {"low": 0.0, "high": 0.0, "sources": 5}, "agreement": 1.0,
        },
        {
            "engine": "cpu", "precision": "int8", "status": "proxy", "scores": SCORES, "f1_drop_points": 0.05,
            "interval": {"low": -0.01, "high": 0.13, "sources": 5}, "agreement": 0.9993,
        },
    ],
}  # fmt: skip


def card_of(bundle: Path, **changes: Any) -> str:
    """Returns the text of the published model card."""
    out = bundle.with_name("published")
    publish_bundle(edit(bundle, lambda m: m.update(changes)), "huggingface", out, force=True)
    return (out / "README.md").read_text()


def fields_of(card: str) -> Any:
    """Returns the metadata as the Hub's library parses them."""
    hub = pytest.importorskip("huggingface_hub", reason="huggingface-hub is not installed")
    data = hub.ModelCard(card).data
    assert isinstance(data, hub.ModelCardData)
    return data


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def test_metadata_hold_licence_and_accuracy(bundle: Path) -> None:
    data = fields_of(card_of(bundle, metrics=METRICS, licence="CC-BY-NC-4.0"))
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "cc-by-nc-4.0",
        "misgnet-export",
        "image-segmentation",
    )
    assert "change-detection" in data.tags and data.model_name == "bundle"
    found = {(one.metric_type, one.metric_name.rpartition("engine ")[2]): one for one in data.eval_results}
    assert found["f1", "cpu (int8)"].metric_value == 0.8245
    drop = found["f1_drop_points", "cpu (int8)"]
    assert drop.metric_value == 0.05 and drop.metric_args == {"interval_95": [-0.01, 0.13]}
    assert found["agreement", "cpu (int8)"].metric_value == 0.9993 and len(found) == 6
    assert drop.dataset_name == "80 tiles of 5 images" and drop.dataset_args == {"sha256": "a" * 64}


@pytest.mark.parametrize(
    ("licence", "kind", "name"),
    [
        ("not stated", "unknown", None),
        ("MIT", "mit", None),
        ("research: see https://example.org # terms", "other", "research: see https://example.org # terms"),
        ('"quoted"\n---\nlicense: mit', "other", '"quoted"\n---\nlicense: mit'),
    ],
)  # fmt: skip
def test_any_licence_is_stated(bundle: Path, licence: str, kind: str, name: str | None) -> None:
    data = fields_of(card_of(bundle, licence=licence))
    assert data.license == kind and data.to_dict().get("license_name") == name


def test_text_states_accuracy_calibration_use_and_limits(bundle: Path) -> None:
    text = card_of(bundle, metrics=METRICS)
    for title in ("Use", "Accuracy", "Calibration", "Intended use", "Limits", "Origin"):
        assert f"\n## {title}\n" in text
    assert (
        "| cpu | int8 | 0.8245 | +0.050 (-0.010 to +0.130) | 99.93 % | by proxy: another engine ran its graph |" in text
    )
    assert "80 tiles of 5 images" in text and "Reference: PyTorch float32, F1 0.8250." in text
    assert "| graphs/int8.onnx | none | 100.00 % |" in text and "8 tiles" in text
    assert "misgnet-run predict bundle before.tif after.tif" in text
    assert "were never run on their own processor" in text and "resolution of the training data is not stated" in text


def test_unlabelled_evaluation_states_no_f1(bundle: Path) -> None:
    engine = {"engine": "cpu", "precision": "int8", "status": "run", "agreement": 0.999}
    text = card_of(bundle, metrics={"engines": [engine], "tiles": 1, "sources": 1, "labelled": False})
    assert "| cpu | int8 | n/a | n/a | 99.90 % | itself |" in text and "have no labels" in text
    assert [one.metric_type for one in fields_of(text).eval_results] == ["agreement"]


def test_old_bundle_without_results_has_a_card(bundle: Path) -> None:
    text = card_of(bundle, metrics={})
    assert fields_of(text).eval_results is None and "## Accuracy" in text


def test_text_of_the_manifest_is_no_markup(bundle: Path) -> None:
    model = {"source": "onnx", "name": "<img src=x>|[a](b).onnx"}
    assert r"\<img src=x\>\|\[a\](b).onnx" in card_of(bundle, model=model, licence="*")


def test_metrics_that_are_none_are_an_error(bundle: Path) -> None:
    with pytest.raises(InputError, match="metrics cannot be read"):
        card_of(bundle, metrics={"engines": [{"engine": 1}]})


@pytest.mark.parametrize("pixels", FORMATS, ids=str)
def test_picture_shows_a_golden_tile(tmp_path: Path, pixels: Any) -> None:
    text = card_of(bands_bundle(tmp_path / "bundle", pixels))
    assert "(change.png)" in text
    with Image.open(tmp_path / "published/change.png") as picture:
        assert picture.mode == "RGB" and picture.width > 3 * 64
