"""Factories of small networks, as a user writes them: this file is given to ``misgnet-export build``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVEL = 0.06  # mean difference of the maps from which a pixel counts as changed


class Siamese(nn.Module):
    """Encodes each date to two maps and compares them; with random weights, masks are neither empty nor full."""

    def __init__(self, channels: int = 16, bands: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(bands, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(channels, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.SiLU())
        self.fuse = nn.Sequential(nn.Conv2d(2 * channels, channels, 3, 1, 1), nn.ReLU())
        self.head = nn.Conv2d(channels, 2, 1)
        with torch.no_grad():
            weight = self.fuse[0].weight.abs_()  # more difference is more change
            weight /= weight.sum((1, 2, 3), keepdim=True)
            self.fuse[0].bias.zero_()
            self.head.weight.copy_(torch.tensor([-10.0, 10.0]).view(2, 1, 1, 1) / channels)
            self.head.bias.copy_(torch.tensor([LEVEL, -LEVEL]) * 10)

    def encode(self, image: Tensor) -> list[Tensor]:
        first = self.stem(image)
        return [first, self.stage(first)]

    def compare(self, before: list[Tensor], after: list[Tensor]) -> Tensor:
        near, far = ((a - b).abs() for a, b in zip(before, after, strict=True))
        both = torch.cat((near, _doubled(far)), 1)
        return _doubled(self.head(self.fuse(both)))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.compare(self.encode(before), self.encode(after))


class Stacked(nn.Module):
    """Reads both dates as one image and outputs a dict of one logit of change and something else."""

    def __init__(self, bands: int = 3) -> None:
        super().__init__()
        self.bands = bands
        self.body = nn.Sequential(nn.Conv2d(2 * bands, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        difference = (images[:, : self.bands] - images[:, self.bands :]).abs().mean(1, keepdim=True)
        return {"change": 8 * difference - 2 + _doubled(self.head(self.body(images))), "aux": difference}


def siamese() -> nn.Module:
    return Siamese()


def stacked() -> nn.Module:
    return Stacked()


def _doubled(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)
