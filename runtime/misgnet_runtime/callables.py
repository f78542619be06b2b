"""Defines the types of arrays and callbacks that the stages pass to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# (H, W, C), uint8 or uint16; a bundle's :class:`misgnet_runtime.pixels.PixelFormat` says which
Image = NDArray[np.unsignedinteger[Any]]
Mask = NDArray[np.bool_]  # (H, W)
# (before, after), each (B, T, T, C) of the bundle's pixel format, -> probability of change, float32 (B, T, T)
Predict = Callable[[Image, Image], NDArray[np.float32]]
# (finished steps, total steps)
Progress = Callable[[int, int], None]
