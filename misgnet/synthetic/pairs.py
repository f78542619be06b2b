"""Generates and writes synthetic pairs: plans a scene, paints it at both dates and simulates the camera."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from misgnet.synthetic.drawing import (
    SCALE,
    cast_shadows,
    draw_car,
    draw_field,
    draw_road,
    draw_site,
    draw_tree,
    on_canvas,
)
from misgnet.synthetic.light import Light, Relief, draw_ground, make_light, make_relief
from misgnet.synthetic.plan import plan_scene
from misgnet.synthetic.roofs import draw_roof
from misgnet.synthetic.scene import MARGIN, Scene

BEFORE, AFTER = 0, 1


@dataclass(frozen=True)
class SyntheticPair:
    """One pair on a common grid."""

    before: NDArray[np.uint8]  # (H, W, 3) RGB
    after: NDArray[np.uint8]  # (H, W, 3) RGB
    label: NDArray[np.bool_]  # (H, W); true for roofs that exist at only one date


def make_pair(seed: int, size: int = 256) -> SyntheticPair:
    """Generates the pair of a seed; the same arguments always give the same bytes.

    Args:
        seed: Seed, not negative.
        size: Side of the tile in pixels, a multiple of 32 from 64 to 1024.

    Raises:
        ValueError: If ``size`` is not supported.
    """
    if size % 32 or not 64 <= size <= 1024:
        raise ValueError(f"size must be a multiple of 32 from 64 to 1024, not {size}")
    plan, look, ground, *sensors = (Generator(PCG64(s)) for s in SeedSequence(seed).spawn(5))
    scene = plan_scene(plan, size)
    relief = make_relief(ground, size + 2 * MARGIN)
    before, after = (photograph(scene, relief, make_light(look, date), date, sensors[date]) for date in (BEFORE, AFTER))
    return SyntheticPair(before, after, draw_label(scene))


def pair_seed(seed: int, index: int) -> int:
    """Returns the seed of pair ``index`` of a split; at least 2**32 and different from the seeds of other splits."""
    return ((seed + 1) << 32) + index


def write_split(
    folder: Path,
    count: int,
    seed: int,
    size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes pairs as A/NAME.png, B/NAME.png and label/NAME.png (8-bit grey, 0 or 255).

    Args:
        folder: Folder to write to; it is created if necessary.
        count: Number of pairs.
        seed: Seed of the split.
        size: Side of a tile in pixels, a multiple of 32 from 64 to 1024.
        progress: Called with the number of pairs written so far and ``count``.
    """
    for name in ("A", "B", "label"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pair = make_pair(pair_seed(seed, index), size)
        grey = pair.label.astype(np.uint8) * np.uint8(255)
        for name, pixels in (("A", pair.before), ("B", pair.after), ("label", grey)):
            Image.fromarray(pixels).save(folder / name / f"pair_{index:05d}.png", compress_level=4)
        if progress is not None:
            progress(index + 1, count)


def photograph(scene: Scene, relief: Relief, light: Light, date: int, rng: Generator) -> NDArray[np.uint8]:
    """Returns the image of a date, (size, size, 3), as taken by a camera that blurs, tints and adds noise."""
    size = scene.size
    view = _view(_paint(scene, relief, light, date, rng), size, light.shift)
    centred = np.arange(256) - 118.0
    exposed = np.concatenate([centred * gain + (118 + light.offset) for gain in light.gain])
    exposure = exposed.clip(0, 255).round().astype(int).tolist()
    view = view.filter(ImageFilter.BoxBlur(light.blur)).point(exposure)
    pixels = np.asarray(view) * relief.texture
    noise = rng.random(pixels.shape, dtype=np.float32)  # uniform, which is faster than normal
    noise *= np.float32(math.sqrt(12) * light.noise)
    pixels += noise
    pixels += np.float32(0.5 - math.sqrt(3) * light.noise)  # 0.5 because astype truncates
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


def _paint(scene: Scene, relief: Relief, light: Light, date: int, rng: Generator) -> Image.Image:
    """Draws everything that is present at a date, from the ground up, on a canvas with a margin."""
    side = (scene.size + 2 * MARGIN) * SCALE
    canvas = draw_ground(relief, light).resize((side, side), Image.Resampling.NEAREST)
    brush = ImageDraw.Draw(canvas)
    for item in scene.fields:
        draw_field(brush, item, light, date)
    for building in scene.buildings:
        draw_site(brush, building, light, date)
    for road in scene.roads:
        draw_road(brush, road, light, scene.size)
    for car in scene.cars[date]:
        draw_car(brush, car)
    cast_shadows(canvas, scene, light, date)
    for tree in scene.trees:
        if tree.present[date]:
            draw_tree(brush, tree, light, date)
    for building in scene.buildings:
        if building.present[date]:
            draw_roof(brush, building, light, rng)
    return canvas


def _view(canvas: Image.Image, size: int, shift: tuple[float, float]) -> Image.Image:
    """Returns the view (size, size) of the canvas at an offset of ``shift`` pixels from the common grid."""
    left, top = ((MARGIN + value) * SCALE for value in shift)
    box = (left, top, left + size * SCALE, top + size * SCALE)
    return canvas.resize((size, size), Image.Resampling.HAMMING, box=box)


def draw_label(scene: Scene) -> NDArray[np.bool_]:
    """Returns the mask of roofs that exist at only one date, (size, size), on the common grid."""
    side = (scene.size + 2 * MARGIN) * SCALE
    canvas = Image.new("L", (side, side))
    brush = ImageDraw.Draw(canvas)
    for building in scene.buildings:
        if building.present[BEFORE] != building.present[AFTER]:
            for box in building.boxes:
                brush.polygon(on_canvas(building.place(box.corners())), fill=255)
    return np.asarray(_view(canvas, scene.size, (0.0, 0.0))) > 127
