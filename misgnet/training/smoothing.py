"""What a bundle's graph smoothed, done to the network: outliers of a LayerNorm's output moved into weights.

Xiao et al., "SmoothQuant", ICML 2023: the norm's scale and bias are divided by a factor for each channel, and the
weights that read the channel are multiplied by it. The network computes what it did before, under the same names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from misgnet.network import MISGNet
from misgnet.network.encoder import Block
from misgnet_runtime.errors import InputError


def smooth(network: MISGNet, norm: str, factors: Sequence[float]) -> None:
    """Divide the output of the LayerNorm called ``norm`` by ``factors`` (C,), and undo it in what reads it.

    Raises InputError where there is no such norm, something else reads it, or the factors are not its channels'.
    """
    layers = _with_readers(network).get(norm)
    if layers is None:
        raise InputError(f"the bundle's graph was smoothed behind '{norm}', which is no LayerNorm of weights alone")
    first, *readers = layers
    by = torch.tensor(factors, dtype=torch.float64)
    if by.shape != first.weight.shape or not bool((by > 0).all()):
        found = f"{len(by)} factors, the smallest {float(by.min()):g}"
        raise InputError(
            f"the bundle's graph was smoothed behind '{norm}' by {found}; it has {len(first.weight)} channels"
        )
    with torch.no_grad():
        for value in first.parameters():  # scale and bias
            value.copy_(value.double() / by)
        for reader in readers:
            shape = [1, -1] + [1] * (reader.weight.ndim - 2)
            reader.weight.copy_(reader.weight.double() * by.view(shape))


def _with_readers(network: nn.Module) -> dict[str, tuple[nn.LayerNorm | nn.Linear | nn.Conv2d, ...]]:
    """The norms whose channels end in weights alone, by name, each before the layers that read it."""
    found: dict[str, tuple[nn.LayerNorm | nn.Linear | nn.Conv2d, ...]] = {}
    for name, block in network.named_modules():
        if isinstance(block, Block):
            found[f"{name}.norm1"] = (block.norm1, block.attn.q, block.attn.sr)
            found[f"{name}.attn.norm"] = (block.attn.norm, block.attn.kv)
            found[f"{name}.norm2"] = (block.norm2, block.mlp.fc1)
    return found
