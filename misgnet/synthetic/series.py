"""Generates several dates of one place, at each of which some buildings have appeared or disappeared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.typing import NDArray

from misgnet.synthetic.light import make_light, make_relief
from misgnet.synthetic.pairs import AFTER, BEFORE, draw_label, photograph
from misgnet.synthetic.plan import plan_scene
from misgnet.synthetic.scene import MARGIN, Scene


@dataclass(frozen=True)
class SyntheticSeries:
    """Images of one place, by date, on a common grid."""

    images: tuple[NDArray[np.uint8], ...]  # (H, W, 3) RGB, of every date
    labels: tuple[NDArray[np.bool_], ...]  # (H, W), of every date: true for roofs that exist only then or only at first


def make_series(seed: int, size: int = 256, dates: int = 4) -> SyntheticSeries:
    """Generates a series; the same arguments always give the same bytes.

    The place is that of ``make_pair(seed, size)``, and the last label is that pair's.

    Args:
        seed: Seed, not negative.
        size: Side of the images in pixels, a multiple of 32 from 64 to 1024.
        dates: Number of dates, at least 2. The changes of the pair are spread over the dates after the first.

    Raises:
        ValueError: If ``size`` or ``dates`` is not supported.
    """
    if size % 32 or not 64 <= size <= 1024 or dates < 2:
        raise ValueError(f"size must be a multiple of 32 from 64 to 1024, dates at least 2, not {size} and {dates}")
    plan, look, ground, chance, *sensors = (Generator(PCG64(s)) for s in SeedSequence(seed).spawn(4 + dates))
    scene = plan_scene(plan, size)
    relief = make_relief(ground, size + 2 * MARGIN)
    changed_at = chance.integers(1, dates, len(scene.buildings)).tolist()
    scenes = [_scene_at(scene, date, changed_at) for date in range(dates)]
    images = tuple(
        photograph(found, relief, make_light(look, min(date, AFTER)), min(date, AFTER), sensor)
        for date, (found, sensor) in enumerate(zip(scenes, sensors, strict=True))
    )
    return SyntheticSeries(images, tuple(map(draw_label, scenes)))


def _scene_at(scene: Scene, date: int, changed_at: list[int]) -> Scene:
    """Returns a scene whose second date is ``date``; each building changes at its date of ``changed_at``."""
    buildings = [
        replace(one, present=(one.present[BEFORE], one.present[AFTER if date >= at else BEFORE]))
        for one, at in zip(scene.buildings, changed_at, strict=True)
    ]
    return replace(scene, buildings=tuple(buildings))
