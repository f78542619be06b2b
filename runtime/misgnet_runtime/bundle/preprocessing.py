"""Scales pixels for the network: RGB in [0, 1], minus the ImageNet mean, divided by its standard deviation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.bundle.manifest import IMAGENET_MEAN, IMAGENET_STD


def normalise(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Converts uint8 (B, H, W, 3) to normalised float32 (B, 3, H, W)."""
    mean, std = (np.array(numbers, np.float32) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    scaled: NDArray[np.float32] = images.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(0, 3, 1, 2))
