"""Augmentation of one tile pair on tensors: geometry for both dates and the label, colour for each date alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Which changes of a pair are drawn. ``colour`` scales the jitter, 0 turns it off.

    The jitter grows over the first ``colour_ramp`` of a run: at full strength from the first step a network
    that starts from scratch does not learn at all.
    """

    flip: bool = True
    turn: bool = True  # by quarters
    swap: bool = True  # the two dates
    colour: float = 1.0
    colour_ramp: float = 1 / 3

    def strength(self, share: float) -> float:
        """Strength of the jitter when ``share`` (0 to 1) of the run is over."""
        return self.colour * (min(1.0, share / self.colour_ramp) if self.colour_ramp > 0 else 1.0)


def augment(pair: Pair, augmentation: Augmentation, generator: torch.Generator, share: float) -> Pair:
    """One random version of a pair; draws the same numbers from ``generator`` whatever is turned off.

    ``pair``: both dates float (3, T, T) in [0, 1] and the label bool (T, T); ``share`` as in
    :meth:`Augmentation.strength`.
    """
    turns, flips, swaps = (int(torch.randint(n, (), generator=generator)) for n in (4, 2, 2))
    turns *= augmentation.turn
    flips *= augmentation.flip
    before, after, label = (_turned(x, turns, flips) for x in pair)
    if swaps and augmentation.swap:
        before, after = after, before
    strength = augmentation.strength(share)
    return _jittered(before, generator, strength), _jittered(after, generator, strength), label


def _turned(x: Tensor, turns: int, flip: int) -> Tensor:
    x = torch.rot90(x, turns, (-2, -1))
    return x.flip(-1) if flip else x


def _jittered(x: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Contrast within 25 %, gain of each channel within 10 % and brightness within 15 % at full strength."""
    draw = torch.rand(5, generator=generator) - 0.5
    contrast, offset = 1 + strength * 0.5 * draw[0], strength * 0.3 * draw[1]
    gain = (1 + strength * 0.2 * draw[2:]).view(3, 1, 1)
    mean = x.mean((1, 2), keepdim=True)
    return (((x - mean) * contrast + mean) * gain + offset).clamp(0, 1) if strength else x
