"""Computes the network in half precision, except the semantic guidance, whose exponents exceed half precision.

The types are part of the program: weights and activations are float16, with casts at the border of each guidance
module. A compiler of strongly typed networks, such as TensorRT, therefore chooses no type itself.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from misgnet.network.decoder import Decode
from misgnet.network.guidance import ConvNorm, LevelGuidance
from misgnet_export.graph.stacked_guidance import StackedLevel


class HalfNetwork(nn.Module):
    """A copy of a network, for inference, that computes in ``dtype`` and its guidance in float32.

    Batch norms are folded into their convolutions before rounding: half precision cannot represent small variances.

    Args:
        network: The network, with or without stacked guidance; it stays unchanged.
        dtype: Type of weights and activations: float16 or bfloat16.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.dtype = dtype
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        for module in self.network.modules():
            _fold_norm(module)
        self.network.to(dtype)
        for name, module in network.named_modules():
            if isinstance(module, (LevelGuidance, StackedLevel)):
                self.network.set_submodule(name, Float32Island(module))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Maps images of both dates, of any float type, to float32 logits; shapes as those of the network."""
        logits: Tensor = self.network(before.to(self.dtype), after.to(self.dtype))
        return logits.float()


class Float32Island(nn.Module):
    """Computes a copy of ``module`` in float32, with input and output in half precision."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).float().eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.module(x.float())
        return output.to(x.dtype)


def _fold_norm(module: nn.Module) -> None:
    """Folds the batch norm of a module that applies a convolution and then this norm."""
    names = {ConvNorm: ("conv", "bn"), Decode: ("conv3", "bn3")}.get(type(module))
    if names is not None:
        conv, norm = (getattr(module, name) for name in names)
        setattr(module, names[0], fuse_conv_bn_eval(conv, norm))
        setattr(module, names[1], nn.Identity())
