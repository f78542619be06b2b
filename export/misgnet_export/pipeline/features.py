"""Computes features of tiles with the float encoder, from which calibration tiles are selected."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from misgnet.network import MISGNet
from misgnet.tensors import normalise, unit_range
from misgnet_calibration.statistics.tile_selection import FeatureExtractor
from misgnet_export.pipeline.torch_threads import tile_per_core

_HALVED_FROM = 128  # px; half the resolution distinguishes tiles equally well in a quarter of the time


def encoder_features(network: MISGNet) -> FeatureExtractor:
    """Returns a function from uint8 tiles (B, T, T, 3) of both dates to features float32 (B, F).

    Features are the mean and the standard deviation of every channel of every stage: of each, the mean over both dates
    and their absolute difference, so that swapping the dates changes nothing.
    """

    @torch.inference_mode()
    def features(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = normalise(unit_range(np.concatenate((before, after))))
        if images.shape[-1] >= _HALVED_FROM:
            images = F.avg_pool2d(images, 2)
        maps = network.backbone(images)
        first, second = torch.cat([_moments(x) for x in maps], 1).chunk(2)
        return torch.cat(((first + second) / 2, (first - second).abs()), 1).numpy()

    return tile_per_core(features)


def _moments(maps: Tensor) -> Tensor:
    """Returns mean and standard deviation per channel: (B, C, h, w) -> (B, 2C)."""
    flat = maps.flatten(2)
    return torch.cat((flat.mean(2), flat.std(2)), 1)
