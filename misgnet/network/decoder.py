"""Defines the decoder (multilevel difference aggregation), which turns three difference maps into logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misgnet.network.guidance import ConvNorm


class Decode(nn.Module):
    """Merges a fine map ``left`` (B, C, h, w) and a coarse map ``down`` (B, C, h/2, w/2) -> (B, C, h, w).

    As in the published network, the product uses ``down`` without a convolution, and the sum uses ``left`` without
    one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_d1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_l = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(channels, eps=1e-5)

    def forward(self, left: Tensor, down: Tensor) -> Tensor:
        product = F.relu(self.conv_l(left) * upsample(down, 2))
        total = F.relu(upsample(self.conv_d1(down), 2) + left)
        return F.relu(self.bn3(self.conv3(torch.cat((product, total), dim=1))))


def upsample(x: Tensor, factor: int) -> Tensor:
    """Upsamples bilinearly with align_corners=False.

    Uses a factor instead of a size: the result is the same, and the factor is exported as a constant.
    """
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class FinalConv(nn.Module):
    """The last convolution: (B, 32, h, w) -> logits (B, 2, h, w). Published checkpoints call it ``conv``."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Head(nn.Sequential):
    """3 x 3 convolution to ``hidden`` channels, batch norm, ReLU, then 3 x 3 convolution to ``classes`` channels."""

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__(ConvNorm(channels, hidden, 3, bias=True), FinalConv(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self[1](F.relu(self[0](x)))
