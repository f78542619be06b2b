"""Augmentation of a batch of tile pairs on tensors: geometry for all three, colour for each date alone."""

from __future__ import annotations

import torch
from torch import Tensor


def augment(
    before: Tensor, after: Tensor, label: Tensor, generator: torch.Generator, strength: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One random flip and quarter turn a batch, date swap per pair, colour jitter per image.

    ``before``/``after``: float (B, 3, H, W) in [0, 1], square; ``label``: bool (B, H, W);
    ``strength`` in [0, 1] scales the colour jitter.
    """
    turns, flip = _draw(generator, 4), _draw(generator, 2)
    before, after, label = (_turn(x, turns, flip) for x in (before, after, label))
    swap = torch.rand(len(before), generator=generator) < 0.5
    swap = swap.view(-1, 1, 1, 1)
    before, after = torch.where(swap, after, before), torch.where(swap, before, after)
    return _jitter(before, generator, strength), _jitter(after, generator, strength), label


def _draw(generator: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=generator))


def _turn(x: Tensor, turns: int, flip: int) -> Tensor:
    x = torch.rot90(x, turns, (-2, -1))
    return x.flip(-1) if flip else x


def _jitter(x: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Contrast, per-channel gain and brightness, each within 25 % at full strength."""
    shape = (len(x), 1, 1, 1)
    contrast = 1 + strength * 0.5 * (torch.rand(shape, generator=generator) - 0.5)
    gain = 1 + strength * 0.2 * (torch.rand((len(x), 3, 1, 1), generator=generator) - 0.5)
    offset = strength * 0.3 * (torch.rand(shape, generator=generator) - 0.5)
    mean = x.mean((2, 3), keepdim=True)
    return (((x - mean) * contrast + mean) * gain + offset).clamp(0, 1)
