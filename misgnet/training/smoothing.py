"""Applies the SmoothQuant factors of a bundle's graph to the network.

SmoothQuant (Xiao et al., ICML 2023) moves outliers of a LayerNorm's output into weights: the scale and bias of the
norm are divided by one factor per channel, and the weights that read the channel are multiplied by it. The output of
the network and the names of its parameters do not change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from misgnet.network import MISGNet
from misgnet.network.encoder import Block
from misgnet_runtime.errors import InputError
from misgnet_runtime.formatting import plural


def smooth(network: MISGNet, norm: str, factors: Sequence[float]) -> None:
    """Divides the output of LayerNorm ``norm`` by ``factors`` (C,), and multiplies the weights that read it by them.

    Raises InputError if there is no such norm, other operations read its output, or the factors do not match its
    channels.
    """
    layers = _with_readers(network).get(norm)
    if layers is None:
        raise InputError(
            f"the bundle's graph is smoothed after '{norm}', which is not a LayerNorm that only weights read"
        )
    first, *readers = layers
    by = torch.tensor(factors, dtype=torch.float64)
    if by.shape != first.weight.shape or not bool((by > 0).all()):
        found = f"{plural(len(by), 'factor')}, the smallest is {float(by.min()):g}"
        raise InputError(
            f"the bundle's graph is smoothed after '{norm}' with {found}; the network has "
            f"{plural(len(first.weight), 'channel')} there, and factors must be above 0"
        )
    with torch.no_grad():
        for value in first.parameters():  # scale and bias
            value.copy_(value.double() / by)
        for reader in readers:
            shape = [1, -1] + [1] * (reader.weight.ndim - 2)
            reader.weight.copy_(reader.weight.double() * by.view(shape))


def _with_readers(network: nn.Module) -> dict[str, tuple[nn.LayerNorm | nn.Linear | nn.Conv2d, ...]]:
    """Returns by name the norms that only weights read: each norm followed by the layers that read it."""
    found: dict[str, tuple[nn.LayerNorm | nn.Linear | nn.Conv2d, ...]] = {}
    for name, block in network.named_modules():
        if isinstance(block, Block):
            found[f"{name}.norm1"] = (block.norm1, block.attn.q, block.attn.sr)
            found[f"{name}.attn.norm"] = (block.attn.norm, block.attn.kv)
            found[f"{name}.norm2"] = (block.norm2, block.mlp.fc1)
    return found
