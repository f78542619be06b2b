"""Tests that the training losses follow their formulas and can be computed from sums over processes."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the network needs the [train] extra")

from misgnet.training.losses import LossWeights, change_loss, dice_loss, distillation_loss, focal_loss


def logits_for(probability: torch.Tensor) -> torch.Tensor:
    """Returns logits (B, 2, H, W) whose softmax is ``probability`` (B, H, W) of change."""
    return torch.stack(((1 - probability).log(), probability.log()), 1)


def random_case(seed: int, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, 8, 8, generator=draw) * 3, torch.rand(batch, 8, 8, generator=draw) < 0.3


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
    weighed = change_loss(logits, label, LossWeights(dice=2, focal=3, focal_alpha=0.5, focal_gamma=0)).item()
    cross_entropy = sum(-0.5 * math.log(q) for q in right) / 4
    assert weighed == pytest.approx(2 * dice + 3 * cross_entropy, abs=1e-6)


def test_loss_of_a_certain_prediction_is_zero_or_finite() -> None:
    label = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    sure = torch.stack((~label, label), 1) * 200.0
    assert change_loss(sure, label).item() == pytest.approx(0, abs=1e-5)
    assert change_loss(-sure, label).isfinite()
    assert change_loss(sure, torch.zeros_like(label)).isfinite()


def test_sums_of_two_parts_give_the_joint_loss_and_gradient() -> None:
    """Imitates two processes: each computes its own part and adds the sums of the other."""
    logits, label = random_case(1)
    joint = logits.clone().requires_grad_()
    change_loss(joint, label).backward()
    sums = []
    for part in (slice(0, 1), slice(1, 4)):
        change_loss(logits[part], label[part], reduce=lambda x: (sums.append(x), x)[1])
    mine = logits[:1].clone().requires_grad_()
    loss = change_loss(mine, label[:1], reduce=lambda x: x + sums[1])
    loss.backward()
    assert loss.item() == pytest.approx(change_loss(logits, label).item(), abs=1e-6)
    assert torch.allclose(mine.grad, joint.grad[:1], atol=1e-7)
    alone = change_loss(logits[:1], label[:1])
    assert alone.item() != pytest.approx(
        loss.item(), abs=1e-3
    )  # the Dice loss of a batch is not the mean over its parts


def test_distillation_loss_is_the_divergence_from_the_teacher() -> None:
    student, teacher = random_case(2)[0], random_case(3)[0]
    p, q = teacher.softmax(1), student.softmax(1)
    expected = (p * (p.log() - q.log())).sum(1).mean().item()
    assert distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(teacher + 5, teacher).item() == pytest.approx(0, abs=1e-6)
