"""Scales pixels for the network: (value * scale - mean) / std for each band."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.bundle.manifest import Normalization


def normalise(images: NDArray[np.generic], how: Normalization) -> NDArray[np.float32]:
    """Converts raw images (B, H, W, C) to normalised float32 (B, C, H, W); ``how`` has C bands."""
    mean, std = (np.array(numbers, np.float32) for numbers in (how.mean, how.std))
    scaled: NDArray[np.float32] = images.astype(np.float32) / np.float32(1 / how.scale)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(0, 3, 1, 2))
