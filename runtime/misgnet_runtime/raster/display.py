"""Converts images of any pixel format to 8-bit RGB, for pictures that people look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Image, Mask

_STRETCH = 2, 98  # percentiles of 16-bit values that become black and white


@dataclass(frozen=True)
class Stretch:
    """The values of the red, green and blue bands that become black and white; None: 8-bit values as they are."""

    black: NDArray[np.float64] | None
    white: NDArray[np.float64] | None

    @classmethod
    def of(cls, before: Image, after: Image, valid: Mask | None = None) -> Stretch:
        """Finds the stretch of two dates, (h, w, C).

        16-bit values are stretched: percentiles 2 and 98 of each band, of the ``valid`` pixels, bool (h, w), of both
        dates together, become black and white (default: of all pixels).
        """
        if before.dtype == np.uint8:
            return cls(None, None)
        dates = _rgb(before), _rgb(after)
        values = np.concatenate([(date if valid is None else date[valid]).reshape(-1, 3) for date in dates])
        black, white = np.percentile(values, _STRETCH, axis=0) if len(values) else (np.zeros(3), np.ones(3))
        return cls(black, white)

    def apply(self, image: Image) -> Image:
        """Returns an image, (h, w, C), as 8-bit RGB: bands 1 to 3, or band 1 as grey if there are fewer."""
        shown = _rgb(image)
        if self.black is None or self.white is None:
            return shown
        scaled = (shown - self.black) * (255 / np.maximum(self.white - self.black, 1))
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def displayed(before: Image, after: Image, valid: Mask | None = None) -> tuple[Image, Image]:
    """Returns both dates, (h, w, C), as 8-bit RGB; see :class:`Stretch`."""
    stretch = Stretch.of(before, after, valid)
    return stretch.apply(before), stretch.apply(after)


def _rgb(image: Image) -> Image:
    return image[..., [0, 1, 2] if image.shape[2] >= 3 else [0, 0, 0]]
