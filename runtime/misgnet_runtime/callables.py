"""Defines the types of arrays and callbacks that the stages pass to each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W)
# (before, after), each uint8 (B, T, T, 3), -> probability of change, float32 (B, T, T)
Predict = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]
# (finished steps, total steps)
Progress = Callable[[int, int], None]
