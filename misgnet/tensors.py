"""Converts image tiles to normalised tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from misgnet_runtime.bundle import IMAGENET_MEAN, IMAGENET_STD
from misgnet_runtime.raster.dataset import Tile, stack


def unit_range(images: np.ndarray) -> Tensor:
    """Converts uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def normalise(images: Tensor) -> Tensor:
    """Normalises float images (B, 3, H, W) in [0, 1] with the ImageNet mean and standard deviation."""
    shape = (1, 3, 1, 1)
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(shape)
    return (images - mean) / torch.tensor(IMAGENET_STD, device=images.device).view(shape)


def tile_tensors(tiles: Sequence[Tile]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns both dates as float32 (B, 3, T, T) in [0, 1], and the labels as bool (B, T, T)."""
    before, after = stack(tiles)
    return unit_range(before), unit_range(after), torch.from_numpy(np.stack([t.label for t in tiles]))
