"""Makes pairs of textured images, of which the second is moved by a known offset."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def ground(size: int, seed: int = 0) -> NDArray[np.float64]:
    """Returns an image with structures of many sizes, 0 to 255, float64 (size, size)."""
    random = np.random.default_rng(seed)
    found = sum(
        ndimage.gaussian_filter(random.standard_normal((size, size)), s, mode="wrap") * s for s in (1, 2, 5, 20)
    )
    return np.asarray(255 * (found - found.min()) / np.ptp(found))


def pair_of(size: int, shift: tuple[float, float], seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns two dates, uint8 (3, size, size); the second shows the same ground, moved by ``shift``, with noise."""
    margin = 4 + int(max(map(abs, shift)))
    large = ground(size + 2 * margin, seed)
    moved = ndimage.shift(large, shift, order=3, mode="nearest")
    random = np.random.default_rng(seed + 1)
    dates = [image[margin:-margin, margin:-margin] for image in (large, moved)]
    dates[1] = 0.8 * dates[1] + 20 + random.normal(0, 4, dates[1].shape)
    before, after = (np.repeat(np.clip(np.rint(d), 0, 255).astype(np.uint8)[None], 3, axis=0) for d in dates)
    return before, after
