"""Models season, sun and camera of a date, and draws the ground in that light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from misgnet.synthetic.scene import MARGIN, Colour

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Light:
    """Season, sun and camera of one date."""

    sun: tuple[float, float]  # unit vector towards the sun, x right, y down
    shadow: float  # shadow length / height
    gloom: float  # brightness inside a shadow, 0..1
    grass: Colour
    soil: Colour
    tree: Colour
    asphalt: Colour
    gain: tuple[float, float, float]  # contrast and colour cast, per channel
    offset: float  # brightness, grey levels
    blur: float  # radius, pixels
    noise: float  # sensor noise, grey levels
    shift: tuple[float, float]  # offset of the view from the common grid, pixels


@dataclass(frozen=True)
class Relief:
    """Noise that both dates share; ``side`` is the side of the tile with its margin."""

    bare: Image.Image  # (side, side), 8-bit, 255: soil, 0: grass
    wood: Image.Image  # (side, side), 8-bit, 255: wood
    crowns: Floats  # (side, side), heights of the crowns in woods, about standard normal
    texture: Floats  # (size, size, 3), brightness factors for the whole tile, equal in all channels


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Blends two colours: ``share`` 0 returns ``first``, 1 returns ``second``."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def scaled(colour: Colour, factor: float) -> Colour:
    red, green, blue = colour
    return red * factor, green * factor, blue * factor


def ink(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, round(value))) for value in colour)
    return red, green, blue


def make_light(rng: Generator, date: int) -> Light:
    """Draws random season, sun and camera for a date; only the view of the second date has an offset."""
    dry, bearing = float(rng.uniform(0, 1)), float(rng.uniform(0, 2 * np.pi))
    offgrid, heading = 1.5 * float(rng.random()) ** 1.5 * date, float(rng.uniform(0, 2 * np.pi))
    exposure, cast = float(rng.uniform(0.85, 1.12)), rng.uniform(-0.05, 0.05, 3)
    red, green, blue = (exposure * (1 + cast)).tolist()
    return Light(
        sun=(float(np.cos(bearing)), float(np.sin(bearing))),
        shadow=float(rng.uniform(0.5, 1.4)),
        gloom=float(rng.uniform(0.42, 0.6)),
        grass=mix((76, 100, 58), (142, 128, 88), dry),
        soil=mix((150, 124, 94), (190, 172, 140), float(rng.random())),
        tree=mix((40, 66, 40), (84, 78, 46), 0.8 * dry * float(rng.random())),
        asphalt=mix((98, 98, 100), (146, 143, 138), float(rng.random())),
        gain=(red, green, blue),
        offset=float(rng.uniform(-14, 14)),
        blur=float(rng.uniform(0, 0.65)),
        noise=float(rng.uniform(1.5, 5)),
        shift=(offgrid * float(np.cos(heading)), offgrid * float(np.sin(heading))),
    )


def _smooth_noise(rng: Generator, side: int, cell: float) -> Floats:
    """Returns noise (side, side) that varies over about ``cell`` pixels."""
    count = max(4, round(side / cell))
    coarse = Image.fromarray(rng.standard_normal((count, count), dtype=np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) * np.float32(1.3)


def _grey(values: NDArray[np.floating]) -> Image.Image:
    """Converts values, clipped to 0..1, to an 8-bit image."""
    return Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))


def make_relief(rng: Generator, side: int) -> Relief:
    """Draws the random noise that both dates share."""
    patches = 0.7 * _smooth_noise(rng, side, 70) + 0.5 * _smooth_noise(rng, side, 22)
    woods = _smooth_noise(rng, side, 80) + 0.35 * _smooth_noise(rng, side, 16)
    crowns = _smooth_noise(rng, side, 7)
    grain = np.float32(0.042) * _smooth_noise(rng, side, 2.2) + np.float32(0.03) * _smooth_noise(rng, side, 6)
    texture = np.repeat(1 + grain[MARGIN:-MARGIN, MARGIN:-MARGIN, None], 3, axis=2)
    wooded = float(rng.uniform(0.2, 2.0))  # the higher, the fewer woods
    return Relief(_grey(0.3 + 0.35 * patches), _grey(5 * (woods + 0.25 * crowns - wooded)), crowns, texture)


def draw_ground(relief: Relief, light: Light) -> Image.Image:
    """Draws grass, soil and woods of a date, one canvas pixel per tile pixel."""
    size = relief.bare.size
    grass, soil = (Image.new("RGB", size, ink(colour)) for colour in (light.grass, light.soil))
    grass.paste(soil, mask=relief.bare)
    grass.paste(_woods(relief, light), mask=relief.wood)
    return grass


def _woods(relief: Relief, light: Light) -> Image.Image:
    """Draws woods that cover the whole canvas, with crowns that are brighter towards the sun."""
    height = np.pad(relief.crowns, 1, mode="edge")
    facing = -(height[1:-1, 2:] - height[1:-1, :-2]) * light.sun[0]
    facing -= (height[2:, 1:-1] - height[:-2, 1:-1]) * light.sun[1]
    lit = _grey((0.9 + 0.45 * facing + 0.1 * relief.crowns).clip(0.45, 1.6) / 1.6)
    factors = np.arange(256) * (1.6 / 255)
    tones = [lit.point(np.rint(factors * channel).astype(int).tolist()) for channel in light.tree]
    return Image.merge("RGB", tones)
