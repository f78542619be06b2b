"""The published loss: Dice + 0.5 * focal, on the changed class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_loss(logits: Tensor, label: Tensor) -> Tensor:
    """1 - Dice of the changed class over the whole batch; logits (B, 2, H, W), label bool (B, H, W)."""
    probability = logits.float().softmax(1)[:, 1]
    target = label.float()
    return 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)


def focal_loss(logits: Tensor, label: Tensor, alpha: float = 0.2, gamma: float = 2.0) -> Tensor:
    """Mean focal loss (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017), ``alpha`` for "unchanged"."""
    log_p = F.log_softmax(logits.float(), 1).gather(1, label.long().unsqueeze(1)).squeeze(1)
    weight = torch.where(label, 1 - alpha, alpha)
    return -(weight * (1 - log_p.exp()) ** gamma * log_p).mean()


def change_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Dice + 0.5 * focal."""
    return dice_loss(logits, label) + 0.5 * focal_loss(logits, label)
