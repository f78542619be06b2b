"""Tests of ``benchmarks/registration.py``, and of registration on real pairs with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
ndimage = pytest.importorskip("scipy.ndimage", reason="registration needs the [register] extra")
pytest.importorskip("skimage", reason="registration needs the [register] extra")

from benchmarks.registration import MAPS, Map, Predict, rows, table, total
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_scene_files
from support.bundles import FLOAT, INTERFACE, FakeEngine, fake_detector, make_bundle, write_image
from support.scenes import read

SHIFT = (-12.3, 4.7)


def predict_with(folder: Path, engine: Callable[[], FakeEngine], overlap: int) -> Predict:
    bundle, output = make_bundle(folder / "bundle", engines=[FLOAT]), folder / "change.tif"

    def predict(before: Path, after: Path, register: bool) -> Map:
        options = SceneOptions(overlap=overlap, coregister="shift" if register else None, force=True)
        report = predict_scene_files(bundle, before, after, output, options, opener=fake_detector(engine))
        classes, found = read(output), report.registration
        return Map(classes == 1, classes != 255, (found.rows, found.columns) if found else None)

    return predict


def test_a_moved_pair_is_registered_and_scored(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    smooth = sum(ndimage.gaussian_filter(random.standard_normal((400, 400)), s) * s for s in (1, 2, 5))
    before, label = np.clip(60 + 30 * smooth, 0, 120).astype(np.uint8), np.zeros((400, 400), np.bool_)
    label[120:200, 150:260] = True
    after = np.where(label, 255, np.roll(before, 3, 0))
    for name, dates in (("a", (before, after)), ("noise", random.integers(0, 99, (2, 400, 400), np.uint8))):
        for folder, pixels in zip(("A", "B", "label"), (*dates, np.where(label, 255, 0)), strict=True):
            image = pixels.astype(np.uint8)
            image = image if folder == "label" else np.repeat(image[..., None], 3, axis=2)
            write_image(tmp_path / "data" / folder / f"{name}.png", image)
    found = [*rows(predict_with(tmp_path, lambda: FakeEngine(INTERFACE), 16), [tmp_path / "data"], SHIFT)]
    good, noise = found
    assert good.offset == pytest.approx((3, 0), abs=0.05) and good.error == pytest.approx((0, 0), abs=0.05)
    moved, unmoved, inside = total(found).values()
    for scores in (moved, inside):
        assert list(scores) == list(MAPS) and all(score and score > 0.98 for score in scores.values())
    assert unmoved["as it is"] == moved["as it is"] and (unmoved["registered"] or 1) < 0.97
    assert noise.refused and not noise.counts
    lines = table(found, SHIFT).splitlines()
    assert "| noise | refused | |" in lines
    assert "AFTER moved by -12.30, +4.70 px: 1 of 2 pairs within 0.1 px on both axes" in lines


@pytest.mark.slow
def test_registration_keeps_the_score_of_real_pairs(tmp_path: Path, reference: Path) -> None:
    """Uses the whole pairs of the test set and the weights of the smaller training set, in PyTorch."""
    torch = pytest.importorskip("torch", reason="the real network needs PyTorch")
    from misgnet.checkpoint import load_network
    from misgnet.evaluation.tiles import predict_probability

    weights, data = reference / "weights/misgnet_levir35_fp16.safetensors", reference / "data/LEVIR-CD/test"
    if not weights.is_file() or not data.is_dir():
        pytest.skip("the real weights and tiles are not available")
    network = load_network(weights)

    class Real(FakeEngine):
        def _infer(self, context: Any, arrays: dict[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
            return {self.outputs[0].name: predict_probability(network, arrays["before"], arrays["after"])}

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [*rows(predict_with(tmp_path, lambda: Real(replace(INTERFACE, tile=256)), 64), [data], SHIFT)]
    finally:
        torch.set_num_threads(threads)
    assert [row.name for row in found if row.refused] == ["test_47", "test_50"]  # most of them changed
    errors = [row.error for row in found if row.error]
    assert len(errors) == 3 and np.abs(errors).max() <= 0.1
    scores = total(found)["all pixels, labels moved with AFTER"]
    assert scores["moved and registered"] >= scores["as it is"] - 0.005 and scores["as it is"] > 0.8
