"""Augments a tile pair: the same geometric change for both dates and the label, separate colour jitter per date."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Settings of the random augmentation.

    The colour jitter grows at the start of a run: a network with random weights does not learn if the jitter has full
    strength from the first step.
    """

    flip: bool = True  # mirror horizontally
    turn: bool = True  # rotate by quarter turns
    swap: bool = True  # swap the two dates
    colour: float = 1.0  # strength of the colour jitter; 0 disables it
    colour_ramp: float = 1 / 3  # share of the run over which the jitter grows to full strength

    def strength(self, share: float) -> float:
        """Returns the strength of the jitter when ``share`` (0 to 1) of the run is done."""
        return self.colour * (min(1.0, share / self.colour_ramp) if self.colour_ramp > 0 else 1.0)


def augment(pair: Pair, augmentation: Augmentation, generator: torch.Generator, share: float) -> Pair:
    """Returns a random version of a pair.

    Args:
        pair: Both dates as float (3, T, T) in [0, 1], and the label as bool (T, T).
        augmentation: Settings; they do not change how many numbers are drawn.
        generator: Source of random numbers.
        share: Share of the run that is done, 0 to 1.
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
    """Changes contrast by up to 25 %, the gain of each channel by up to 10 % and brightness by up to 15 %.

    These limits are for ``strength`` 1 and are proportional to it.
    """
    draw = torch.rand(5, generator=generator) - 0.5
    contrast, offset = 1 + strength * 0.5 * draw[0], strength * 0.3 * draw[1]
    gain = (1 + strength * 0.2 * draw[2:]).view(3, 1, 1)
    mean = x.mean((1, 2), keepdim=True)
    return (((x - mean) * contrast + mean) * gain + offset).clamp(0, 1) if strength else x
