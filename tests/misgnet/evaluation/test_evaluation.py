"""Tests evaluation and prediction in PyTorch: the confusion matrix, the worst tiles, pictures and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

torch = pytest.importorskip("torch", reason="the network needs the [train] extra")

from misgnet.checkpoint import load_network
from misgnet.evaluation import EvaluatedTile, evaluate, evaluate_tiles, evaluate_with_worst, predict_pair
from misgnet.evaluation.files import PredictOptions, predict_files, predict_folder
from misgnet.evaluation.pictures import CHANGE, LEGEND, draw_worst, error_map, overlay
from misgnet.network import MISGNet
from misgnet.synthetic import write_split
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.raster.images import read_image, read_label
from support.paths import DEMO_WEIGHTS as WEIGHTS


@pytest.fixture(scope="module")
def network() -> MISGNet:
    return load_network(WEIGHTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with pairs of 128 x 128 px, one of them cropped to 70 x 100."""
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, 3, seed=5, size=128)
    for part in ("A", "B", "label"):
        path = folder / part / "pair_00001.png"
        Image.open(path).crop((0, 0, 70, 100)).save(path)
    return folder


def test_scores_equal_those_of_scikit_learn_over_all_pixels(network: MISGNet, data: Path) -> None:
    """The masks are collected image by image, as a user of another tool would do."""
    truth, predicted = [], []
    for path in sorted((data / "A").iterdir()):
        probability = predict_pair(network, read_image(path), read_image(data / "B" / path.name), 64)
        truth.append(read_label(data / "label" / path.name).ravel())
        predicted.append((probability > 0.5).ravel())
    y, z = np.concatenate(truth), np.concatenate(predicted)
    assert y.size == 2 * 128 * 128 + 100 * 70
    assert evaluate(network, TileSet.open(data, 64)).scores() == pytest.approx({
        "precision": metrics.precision_score(y, z),
        "recall": metrics.recall_score(y, z),
        "f1": metrics.f1_score(y, z),
        "iou": metrics.jaccard_score(y, z),
        "accuracy": metrics.accuracy_score(y, z),
        "kappa": metrics.cohen_kappa_score(y, z),
    })  # fmt: skip


def test_worst_tiles_come_first_and_their_number_is_limited(network: MISGNet, data: Path) -> None:
    tiles = TileSet.open(data, 64)
    everything = sorted((evaluated.wrong for evaluated in evaluate_tiles(network, tiles)), reverse=True)
    total, worst = evaluate_with_worst(network, tiles, 3)
    assert [evaluated.wrong for evaluated in worst] == everything[:3] and everything[0] > everything[-1]
    assert total == evaluate(network, tiles)
    assert evaluate_with_worst(network, tiles, 0) == (total, [])
    assert all(evaluated.wrong for evaluated in evaluate_with_worst(network, tiles, 100)[1])
    strict, lax = (evaluate_with_worst(network, tiles, 0, threshold=t)[0] for t in (0.9, 0.1))
    assert strict.tp + strict.fp < total.tp + total.fp < lax.tp + lax.fp


def test_error_map_has_a_colour_for_each_kind_of_pixel() -> None:
    predicted, label = np.array([[0, 1, 1, 0]], bool), np.array([[0, 1, 0, 1]], bool)
    colours = dict(LEGEND)
    expected = ["true negative", "true positive", "false positive", "false negative"]
    assert [tuple(pixel) for pixel in error_map(predicted, label)[0]] == [colours[name] for name in expected]


def test_sheet_shows_dates_label_and_errors_of_each_tile(network: MISGNet, data: Path) -> None:
    evaluated = list(evaluate_tiles(network, TileSet.open(data, 128)))
    sheet = np.asarray(draw_worst(evaluated))
    for tile in evaluated:
        assert sheet.shape[1] > 4 * 128
        for pixels in (tile.tile.before, tile.tile.after, error_map(tile.mask, tile.tile.label)):
            assert _contains(sheet, pixels[tile.tile.owned])
    empty = draw_worst([])
    assert empty.getextrema()[0][0] != empty.getextrema()[0][1]  # it contains text


def _contains(sheet: np.ndarray, part: np.ndarray) -> bool:
    height, width = part.shape[:2]
    corners = np.argwhere((sheet[: -height + 1, : -width + 1] == part[0, 0]).all(-1))
    return any((sheet[r : r + height, c : c + width] == part).all() for r, c in corners)


def test_overlay_tints_and_outlines_only_the_changes() -> None:
    image = np.full((9, 9, 3), 100, np.uint8)
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    found = overlay(image, mask)
    assert (found[~mask] == 100).all() and (image == 100).all()
    assert (found[2, 2:7] == CHANGE).all() and (found[2:7, 6] == CHANGE).all()
    inside = found[3:6, 3:6].reshape(-1, 3)
    assert (inside == inside[0]).all() and tuple(inside[0]) != CHANGE and (inside[0] != 100).any()


def test_predict_folder_writes_masks_probabilities_and_overlays(network: MISGNet, data: Path, tmp_path: Path) -> None:
    options = PredictOptions(tile=64, probability=True, overlay=True)
    done = predict_folder(network, data, tmp_path / "out", options)
    names = [f"pair_0000{n}" for n in range(3)]
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {f"{n}.png" for n in names} | {f"probability/{n}.tif" for n in names} | {
        f"overlay/{n}.png" for n in names
    }
    changed = 0
    for name in names:
        images = [read_image(data / part / f"{name}.png") for part in ("A", "B")]
        expected = predict_pair(network, *images, 64)
        probability = np.asarray(Image.open(tmp_path / "out" / "probability" / f"{name}.tif"))
        mask = read_label(tmp_path / "out" / f"{name}.png")
        assert probability.dtype == np.float32 and np.array_equal(probability, expected)
        assert np.array_equal(mask, expected > 0.5)
        assert np.array_equal(read_image(tmp_path / "out" / "overlay" / f"{name}.png"), overlay(images[1], mask))
        changed += int(mask.sum())
    assert done.pairs == 3 and done.changed_share == pytest.approx(changed / (2 * 128 * 128 + 100 * 70))


def test_predict_folder_needs_no_labels_and_writes_only_masks_by_default(
    network: MISGNet, data: Path, tmp_path: Path
) -> None:
    for part in ("A", "B"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "x.png").write_bytes((data / part / "pair_00001.png").read_bytes())
    predict_folder(network, tmp_path, tmp_path / "out", PredictOptions(tile=64))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.png"]


def test_error_names_the_damaged_image_and_no_output_remains(network: MISGNet, data: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "in", 2, seed=5, size=64)
    later = tmp_path / "in" / "B" / "pair_00001.png"
    content = later.read_bytes()
    for broken, message in ((content[:500], "B/pair_00001.png is damaged"), (b"", "B/pair_00001.png cannot be read")):
        later.write_bytes(broken)
        with pytest.raises(InputError, match=message):
            predict_folder(network, tmp_path / "in", tmp_path / "out", PredictOptions(tile=64))
    Image.new("RGB", (32, 64)).save(later)
    with pytest.raises(InputError, match="32 x 64 px"):
        predict_folder(network, tmp_path / "in", tmp_path / "out", PredictOptions(tile=64))
    later.unlink()
    with pytest.raises(InputError, match="no partner"):
        predict_folder(network, tmp_path / "in", tmp_path / "out", PredictOptions(tile=64))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_predict_files_writes_optional_files_next_to_the_mask(network: MISGNet, data: Path, tmp_path: Path) -> None:
    pair = data / "A" / "pair_00001.png", data / "B" / "pair_00001.png"
    options = PredictOptions(tile=64, probability=True, overlay=True)
    predict_files(network, *pair, tmp_path / "m.png", options)
    assert {path.name for path in tmp_path.iterdir()} == {"m.png", "m_probability.tif", "m_overlay.png"}
    (tmp_path / "m.png").unlink()
    with pytest.raises(UsageError, match=r"m_probability\.tif exists"):
        predict_files(network, *pair, tmp_path / "m.png", options)
    assert not (tmp_path / "m.png").exists()


def test_counts_of_an_evaluated_tile_exclude_padding(network: MISGNet, data: Path) -> None:
    tiles = evaluate_tiles(network, TileSet.open(data, 128))
    (evaluated,) = [tile for tile in tiles if tile.tile.ref.source.name == "pair_00001"]
    assert isinstance(evaluated, EvaluatedTile) and isinstance(evaluated.confusion, Confusion)
    assert evaluated.confusion.pixels == 100 * 70 and evaluated.mask.shape == (128, 128)


@pytest.mark.slow
def test_reference_weights_reach_the_scores_in_their_readme(reference: Path) -> None:
    """Uses real tiles and the weights of the smaller training set: F1 is 0.7103 on val."""
    weights, folder = (
        reference / "weights" / "misgnet_levir35_fp16.safetensors",
        reference / "data" / "LEVIR-CD" / "val",
    )
    if not weights.is_file() or not folder.is_dir():
        pytest.skip("the real weights and tiles are not available")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scores = evaluate(load_network(weights), TileSet.open(folder)).scores()
    finally:
        torch.set_num_threads(threads)
    expected = {"f1": 0.7103, "iou": 0.5508, "precision": 0.8277, "recall": 0.6221, "accuracy": 0.9667}
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert json.dumps(scores)
