"""Arrays and functions that the stages hand to each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W)
# Tiles of both dates, uint8 (B, T, T, 3), to the probability of change, float32 (B, T, T).
Predict = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]
# Told how many steps are done, and of how many.
Progress = Callable[[int, int], None]
