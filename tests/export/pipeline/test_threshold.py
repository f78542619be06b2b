"""Tests the tuned threshold against scikit-learn's F1 at every step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score

from misgnet_export.pipeline.threshold import best_threshold
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import TileSet

TILE = 32


def tile_set(root: Path, labels: list[np.ndarray]) -> TileSet:
    for folder in ("A", "B", "label"):
        (root / folder).mkdir()
    for index, label in enumerate(labels):
        for folder in ("A", "B"):  # the first pixel identifies the tile to the fake network
            Image.fromarray(np.full((*label.shape, 3), index, np.uint8)).save(root / folder / f"{index}.png")
        Image.fromarray(label.astype(np.uint8) * 255).save(root / "label" / f"{index}.png")
    return TileSet.open(root, TILE)


def test_tuned_threshold_is_the_best_of_all_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = [rng.random((TILE, TILE)) < share for share in (0.1, 0.3)]
    predictions = [
        np.where(label, 0.1, 0).astype(np.float32) + 0.4 * rng.random(label.shape, np.float32) for label in labels
    ]
    seen: list[tuple[int, int]] = []
    found = best_threshold(
        lambda before, after: np.stack([predictions[tile[0, 0, 0]] for tile in before]), tile_set(tmp_path, labels),
        lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    truth, probability = np.concatenate(labels).ravel(), np.concatenate(predictions).ravel()
    f1 = {t: f1_score(truth, probability > t) for t in np.arange(1, 1000) / 1000}
    assert found.f1 == pytest.approx(max(f1.values())) == pytest.approx(f1[found.threshold])
    assert found.f1_at_half == pytest.approx(f1[0.5]) and found.f1 > found.f1_at_half
    assert found.tiles == 2 and seen == [(1, 2), (2, 2)]
    assert str(found).startswith(f"{found.threshold:g} on 2 validation tiles: F1 0.")


def test_middle_of_equally_good_thresholds_is_chosen(tmp_path: Path) -> None:
    label = np.zeros((TILE, TILE), bool)
    label[:9] = True
    found = best_threshold(
        lambda before, after: np.where(label, 0.8, 0.2)[None].astype(np.float32), tile_set(tmp_path, [label]),
        lambda done, total: None,
    )  # fmt: skip
    assert found.threshold == pytest.approx(0.5, abs=0.002) and found.f1 == found.f1_at_half == 1


def test_labels_without_change_cannot_tune(tmp_path: Path) -> None:
    tiles = tile_set(tmp_path, [np.zeros((TILE, TILE), bool)])
    with pytest.raises(InputError, match="the labels of --val contain no change"):
        best_threshold(lambda before, after: np.zeros((1, TILE, TILE), np.float32), tiles, lambda done, total: None)


def test_batch_size_does_not_change_the_threshold(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = [rng.random((TILE, TILE)) < 0.2 for _ in range(3)]
    predictions = [np.clip(label + rng.normal(0, 0.4, label.shape), 0, 1).astype(np.float32) for label in labels]
    sizes: list[int] = []

    def predict(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        sizes.append(len(before))
        return np.stack([predictions[tile[0, 0, 0]] for tile in before])

    tiles = tile_set(tmp_path, labels)
    one, two = (best_threshold(predict, tiles, lambda done, total: None, batch=batch) for batch in (1, 2))
    assert one == two and sizes == [1, 1, 1, 2, 1]
