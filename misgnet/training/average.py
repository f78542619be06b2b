"""Maintains the exponential moving average of the weights, which is validated and saved."""

from __future__ import annotations

import copy

import torch

from misgnet.network import MISGNet


class AveragedNetwork:
    """Exponential moving average of all weights and batch-norm statistics.

    The decay is (1 + n) / (10 + n) after n steps, at most ``decay``. With a constant decay of 0.9999, a short run
    would be evaluated on its random initial weights.
    """

    def __init__(self, network: MISGNet, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: MISGNet, step: int) -> None:
        """Updates the average with the weights of ``network`` after step number ``step``, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.network.state_dict(), network.state_dict()
        floats = [key for key, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[k] for k in floats], [theirs[k] for k in floats], weight)
        for key in mine.keys() - set(floats):
            mine[key].copy_(theirs[key])
