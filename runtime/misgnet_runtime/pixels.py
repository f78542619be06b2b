"""Defines the pixels that a network reads: number of bands, data type, and the values that stand for "no data"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Samples = Literal["uint8", "uint16"]
LARGEST: dict[Samples, int] = {"uint8": 255, "uint16": 65535}
SAMPLE_BYTES: dict[Samples, int] = {"uint8": 1, "uint16": 2}
MOST_BANDS = 16


@dataclass(frozen=True)
class PixelFormat:
    """The format of one date's images: (H, W, bands) of ``samples``."""

    bands: int = 3
    samples: Samples = "uint8"
    # One value per band; pixels without data get it in both dates, so that no change appears there. The default is
    # ImageNet's mean, which is normalised to 0.
    neutral: tuple[int, ...] = (124, 116, 104)

    @property
    def largest(self) -> int:
        """The largest value of a sample."""
        return LARGEST[self.samples]

    @property
    def bytes(self) -> int:
        """The number of bytes of a pixel."""
        return self.bands * SAMPLE_BYTES[self.samples]

    @property
    def is_rgb8(self) -> bool:
        """Whether images have the form of 8-bit RGB, whatever their neutral value is."""
        return (self.bands, self.samples) == (3, "uint8")

    def __str__(self) -> str:
        return "8-bit RGB" if self.is_rgb8 else f"{self.bands} band{'s' * (self.bands != 1)} of {self.samples}"


RGB8 = PixelFormat()
