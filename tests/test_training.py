"""Losses, augmentation and a short run: what they compute, not how well it learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from golden import make_network
from misgnet.augmentation import augment
from misgnet.checkpoint import load_network
from misgnet.evaluation import evaluate
from misgnet.losses import change_loss, dice_loss, focal_loss
from misgnet.synthetic import write_split
from misgnet.training import StepReport, TrainConfig, _schedule, _update_average, train
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.tiles import TileSet

SHORT = TrainConfig(batch=2, epochs=1, warmup=0.0, seed=3)


def logits_for(probability: torch.Tensor) -> torch.Tensor:
    """Logits (B, 2, H, W) whose softmax gives ``probability`` (B, H, W) of change."""
    return torch.stack(((1 - probability).log(), probability.log()), 1)


def test_losses_follow_their_formulas() -> None:
    p, y = [0.9, 0.2, 0.6, 0.3], [True, False, False, True]
    logits, label = logits_for(torch.tensor(p).view(1, 2, 2)), torch.tensor(y).view(1, 2, 2)
    dice = 1 - (2 * (0.9 + 0.3) + 1) / (sum(p) + 2 + 1)
    right = [a if b else 1 - a for a, b in zip(p, y, strict=True)]
    weights = [0.8 if b else 0.2 for b in y]
    focal = sum(-w * (1 - q) ** 2 * math.log(q) for w, q in zip(weights, right, strict=True)) / 4
    assert dice_loss(logits, label).item() == pytest.approx(dice, abs=1e-6)
    assert focal_loss(logits, label).item() == pytest.approx(focal, abs=1e-6)
    assert change_loss(logits, label).item() == pytest.approx(dice + 0.5 * focal, abs=1e-6)


def test_loss_of_a_sure_answer() -> None:
    label = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    sure = torch.stack((~label, label), 1) * 200.0
    assert change_loss(sure, label).item() == pytest.approx(0, abs=1e-5)
    assert change_loss(-sure, label).isfinite()
    assert change_loss(sure, torch.zeros_like(label)).isfinite()


@pytest.mark.parametrize("seed", range(12))
def test_augmentation_keeps_images_and_label_aligned(seed: int) -> None:
    """The images encode the label, and where a pixel came from."""
    label = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.5
    place = torch.arange(64.0).view(1, 8, 8).expand(3, 8, 8) / 64
    before = torch.stack((label.float(), place, torch.full_like(place, 0.25)), 1)
    after = torch.stack((label.float(), place, torch.full_like(place, 0.75)), 1)
    new_before, new_after, new_label = augment(before, after, label, torch.Generator().manual_seed(seed), 0.0)
    for image in (new_before, new_after):
        assert torch.equal(image[:, 0] > 0.5, new_label)
        assert torch.allclose(image[:, 1].flatten(1).sort().values, place.flatten(1), atol=1e-6)
    assert torch.allclose(new_before[:, 1], new_after[:, 1], atol=1e-6)
    dates = torch.stack((new_before[:, 2].mean((1, 2)), new_after[:, 2].mean((1, 2))), 1)
    assert torch.allclose(dates.sort(1).values, torch.tensor([[0.25, 0.75]]).expand(3, 2), atol=1e-6)


def test_augmentation_varies_and_jitter_follows_its_strength() -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 8, 8, dtype=torch.bool)
    draw = torch.Generator().manual_seed(0)
    plain = [augment(image, image, label, draw, 0.0)[0] for _ in range(60)]
    assert len({tuple(p.flatten().mul(1000).round().tolist()) for p in plain}) == 8  # turns and flips
    before, after, _ = augment(image, image, label, draw, 1.0)
    assert not torch.allclose(before, after, atol=1e-3)
    assert before.min() >= 0
    assert before.max() <= 1


def test_schedule_warms_up_and_decays_to_zero() -> None:
    config = TrainConfig(warmup=0.1)
    rates = [_schedule(n / 100, config) for n in range(101)]
    assert rates.index(max(rates)) == 10
    assert rates[10] == 1
    assert rates[5] == pytest.approx(0.5)
    assert rates[100] == 0
    assert rates[55] == pytest.approx(0.5**0.9)


def test_average_moves_towards_the_network() -> None:
    average, network = make_network(1), make_network(2)
    network.final2[0].bn.num_batches_tracked += 5
    start = {key: value.clone() for key, value in average.state_dict().items()}
    _update_average(average, network, 0.9)
    for key, value in average.state_dict().items():
        target = network.state_dict()[key]
        expected = 0.9 * start[key] + 0.1 * target if value.is_floating_point() else target
        assert torch.allclose(value, expected, atol=1e-6), key


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> TileSet:
    folder = tmp_path_factory.mktemp("tiles")
    write_split(folder, 6, seed=1, size=64)
    return TileSet.open(folder, 64)


def test_short_run_writes_weights_that_load(tiles: TileSet, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    score = train(tiles, tiles, tmp_path / "run", SHORT, report=reports.append)
    network = load_network(tmp_path / "run" / "best.safetensors")
    assert (evaluate(network, tiles).f1 or 0.0) == pytest.approx(score, abs=1e-6)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [report.step for report in reports] == [0, 1, 2, 3]
    assert log[-1]["val_f1"] == score
    assert all(math.isfinite(entry["loss"]) for entry in log)


def test_run_goes_on_from_weights_and_repeats_itself(tiles: TileSet, tmp_path: Path) -> None:
    train(tiles, tiles, tmp_path / "first", SHORT)
    losses = []
    for name in ("second", "third"):
        found: list[float] = []
        config = replace(SHORT, crop=32, batch=3)
        init = tmp_path / "first" / "best.safetensors"
        train(tiles, tiles, tmp_path / name, config, init, lambda e, found=found: found.append(e.loss))
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_run_without_time_still_makes_one_step(tiles: TileSet, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    train(tiles, tiles, tmp_path / "run", replace(SHORT, minutes=1e-9), report=reports.append)
    assert len(reports) == 2
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_diverged_run_is_an_error(tiles: TileSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("misgnet.training.change_loss", lambda logits, _: logits.sum() * float("nan"))
    with pytest.raises(MisgnetError, match="diverged at step 0"):
        train(tiles, tiles, tmp_path / "run", SHORT)
    assert not (tmp_path / "run" / "best.safetensors").exists()
