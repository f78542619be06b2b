"""Converts images of any pixel format to 8-bit RGB, for pictures that people look at."""

from __future__ import annotations

import numpy as np

from misgnet_runtime.callables import Image, Mask

_STRETCH = 2, 98  # percentiles of 16-bit values that become black and white


def displayed(before: Image, after: Image, valid: Mask | None = None) -> tuple[Image, Image]:
    """Returns both dates, (h, w, C), as 8-bit RGB: bands 1 to 3, or band 1 as grey if there are fewer.

    16-bit values are stretched: percentiles 2 and 98 of each band, of the ``valid`` pixels, bool (h, w), of both dates
    together, become black and white (default: of all pixels).
    """
    bands = [0, 1, 2] if before.shape[2] >= 3 else [0, 0, 0]
    dates = before[..., bands], after[..., bands]
    if before.dtype == np.uint8:
        return dates
    values = np.concatenate([(date if valid is None else date[valid]).reshape(-1, 3) for date in dates])
    low, high = np.percentile(values, _STRETCH, axis=0) if len(values) else (0, 1)
    first, second = (np.clip((date - low) * (255 / np.maximum(high - low, 1)), 0, 255) for date in dates)
    return np.rint(first).astype(np.uint8), np.rint(second).astype(np.uint8)
