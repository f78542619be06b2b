"""Computes the published loss, Dice + 0.5 * focal, from sums that can be added over processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LossWeights:
    """Weights and parameters of the two parts of the loss."""

    dice: float = 1.0  # weight of the Dice loss
    focal: float = 0.5  # weight of the focal loss
    focal_alpha: float = 0.2  # weight of the class "unchanged" in the focal loss
    focal_gamma: float = 2.0  # exponent of the focal loss


def dice_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Returns 1 - Dice of the changed class over the whole batch; logits (B, 2, H, W), label bool (B, H, W)."""
    return _dice(*_dice_sums(logits, label))


def focal_loss(logits: Tensor, label: Tensor, alpha: float = 0.2, gamma: float = 2.0) -> Tensor:
    """Returns the mean focal loss (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017).

    Logits (B, 2, H, W), label bool (B, H, W). ``alpha`` is the weight of the class "unchanged".
    """
    return _focal_sum(logits, label, alpha, gamma) / label.numel()


def change_loss(
    logits: Tensor,
    label: Tensor,
    weights: LossWeights = LossWeights(),
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """Returns the weighted sum of Dice and focal loss, a scalar.

    Args:
        logits: (B, 2, H, W).
        label: bool (B, H, W).
        weights: Weights of the two losses.
        reduce: Adds a vector of sums over processes, with gradient. The Dice loss of a batch is not the mean of the
            Dice losses of its parts, so every process needs the sums of all.
    """
    focal = _focal_sum(logits, label, weights.focal_alpha, weights.focal_gamma)
    pixels = torch.tensor(float(label.numel()), device=logits.device)
    product, predicted, labelled, focal, pixels = reduce(torch.stack((*_dice_sums(logits, label), focal, pixels)))
    return weights.dice * _dice(product, predicted, labelled) + weights.focal * focal / pixels


def distillation_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Returns the mean over pixels of KL(teacher || student) (Hinton et al., 2015, temperature 1).

    ``logits`` of the student and ``teacher`` are both (B, 2, H, W).
    """
    student, target = logits.float().log_softmax(1), teacher.float().log_softmax(1)
    return F.kl_div(student, target, reduction="none", log_target=True).sum(1).mean()


def _dice_sums(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    probability, target = logits.float().softmax(1)[:, 1], label.float()
    return (probability * target).sum(), probability.sum(), target.sum()


def _dice(product: Tensor, predicted: Tensor, labelled: Tensor) -> Tensor:
    return 1 - (2 * product + 1) / (predicted + labelled + 1)


def _focal_sum(logits: Tensor, label: Tensor, alpha: float, gamma: float) -> Tensor:
    log_p = F.log_softmax(logits.float(), 1).gather(1, label.long().unsqueeze(1)).squeeze(1)
    weight = torch.where(label, 1 - alpha, alpha)
    return -(weight * (1 - log_p.exp()) ** gamma * log_p).sum()
