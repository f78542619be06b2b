"""Seeded pairs of synthetic aerial tiles for building change detection.

A pair shows one made-up neighbourhood at two dates, at about 0.5 m per pixel. Between the dates
buildings appear and vanish, and those roofs are the label. Light, season, shadows, cars, trees,
fields, focus, sensor noise and the exact pointing of the camera differ as well, and are not.
Demonstrations and tests use such pairs where no real data set may be shipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from misgnet._scene import (
    MARGIN,
    Box,
    Building,
    Car,
    Colour,
    Field,
    Points,
    Road,
    Scene,
    Tree,
    placed,
    plan_scene,
)

Floats = NDArray[np.float32]

SCALE = 2  # canvas pixels per tile pixel, for smooth edges
BEFORE, AFTER = 0, 1


@dataclass(frozen=True)
class SyntheticPair:
    """One pair on a common grid."""

    before: NDArray[np.uint8]  # (H, W, 3) RGB
    after: NDArray[np.uint8]  # (H, W, 3) RGB
    label: NDArray[np.bool_]  # (H, W); true where a roof is there at one date only


@dataclass(frozen=True)
class Light:
    """How one date looks: season, sun and camera."""

    sun: tuple[float, float]  # unit vector towards the sun, x right, y down
    shadow: float  # shadow length per height
    gloom: float  # brightness inside a shadow, 0..1
    grass: Colour
    soil: Colour
    tree: Colour
    asphalt: Colour
    gain: tuple[float, float, float]  # contrast and colour cast, per channel
    offset: float  # brightness, grey levels
    blur: float  # radius, pixels
    noise: float  # sensor noise, grey levels
    shift: tuple[float, float]  # how far the view is off the common grid, pixels


@dataclass(frozen=True)
class Relief:
    """Noise that the dates share; `side` is the tile with its margin."""

    bare: Image.Image  # (side, side), 8-bit, 255: soil, 0: grass
    wood: Image.Image  # (side, side), 8-bit, 255: wood
    crowns: Floats  # (side, side), the woods' crowns as heights, about standard normal
    texture: Floats  # (size, size, 3), brightness factors that roughen everything, grey


def make_pair(seed: int, size: int = 256) -> SyntheticPair:
    """Make the pair that belongs to `seed` (not negative); the same arguments always give the same bytes.

    `size` is the side of the tile in pixels, a multiple of 32 from 64 to 1024.
    """
    if size % 32 or not 64 <= size <= 1024:
        raise ValueError(f"size must be a multiple of 32 from 64 to 1024, not {size}")
    plan, look, ground, *sensors = (Generator(PCG64(s)) for s in SeedSequence(seed).spawn(5))
    scene = plan_scene(plan, size)
    relief = _make_relief(ground, size + 2 * MARGIN)
    before, after = (
        _photograph(scene, relief, _make_light(look, date), date, sensors[date]) for date in (BEFORE, AFTER)
    )
    return SyntheticPair(before, after, _label(scene))


def pair_seed(seed: int, index: int) -> int:
    """The seed of pair `index` of a split; no two splits share one, nor with seeds below 2**32."""
    return ((seed + 1) << 32) + index


def write_split(
    folder: Path,
    count: int,
    seed: int,
    size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `count` pairs as A/NAME.png, B/NAME.png and label/NAME.png (8-bit grey, 0 or 255) in `folder`.

    `progress` is called with the number of pairs written so far and `count`.
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


# --- how a date looks


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with `share` (0..1) of `second`."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def _scaled(colour: Colour, factor: float) -> Colour:
    red, green, blue = colour
    return red * factor, green * factor, blue * factor


def _make_light(rng: Generator, date: int) -> Light:
    """Draw a date's season, sun and camera; only the second date's view is off the grid."""
    dry, bearing = float(rng.uniform(0, 1)), float(rng.uniform(0, 2 * np.pi))
    offgrid, heading = 1.5 * float(rng.random()) ** 1.5 * date, float(rng.uniform(0, 2 * np.pi))
    exposure, cast = float(rng.uniform(0.85, 1.12)), rng.uniform(-0.05, 0.05, 3)
    red, green, blue = (exposure * (1 + cast)).tolist()
    return Light(
        sun=(float(np.cos(bearing)), float(np.sin(bearing))),
        shadow=float(rng.uniform(0.5, 1.4)),
        gloom=float(rng.uniform(0.42, 0.6)),
        grass=_mix((76, 100, 58), (142, 128, 88), dry),
        soil=_mix((150, 124, 94), (190, 172, 140), float(rng.random())),
        tree=_mix((40, 66, 40), (84, 78, 46), 0.8 * dry * float(rng.random())),
        asphalt=_mix((98, 98, 100), (146, 143, 138), float(rng.random())),
        gain=(red, green, blue),
        offset=float(rng.uniform(-14, 14)),
        blur=float(rng.uniform(0, 0.65)),
        noise=float(rng.uniform(1.5, 5)),
        shift=(offgrid * float(np.cos(heading)), offgrid * float(np.sin(heading))),
    )


# --- ground


def _smooth_noise(rng: Generator, side: int, cell: float) -> Floats:
    """Noise (side, side) that varies over about `cell` pixels."""
    count = max(4, round(side / cell))
    coarse = Image.fromarray(rng.standard_normal((count, count), dtype=np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) * np.float32(1.3)


def _grey(values: NDArray[np.floating]) -> Image.Image:
    """0..1, clipped, as an 8-bit image."""
    return Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))


def _make_relief(rng: Generator, side: int) -> Relief:
    patches = 0.7 * _smooth_noise(rng, side, 70) + 0.5 * _smooth_noise(rng, side, 22)
    woods = _smooth_noise(rng, side, 80) + 0.35 * _smooth_noise(rng, side, 16)
    crowns = _smooth_noise(rng, side, 7)
    grain = np.float32(0.042) * _smooth_noise(rng, side, 2.2) + np.float32(0.03) * _smooth_noise(rng, side, 6)
    texture = np.repeat(1 + grain[MARGIN:-MARGIN, MARGIN:-MARGIN, None], 3, axis=2)
    wooded = float(rng.uniform(0.2, 2.0))  # the higher, the fewer woods
    return Relief(_grey(0.3 + 0.35 * patches), _grey(5 * (woods + 0.25 * crowns - wooded)), crowns, texture)


def _ground(relief: Relief, light: Light) -> Image.Image:
    """Grass, soil and woods of a date, one canvas pixel per tile pixel."""
    size = relief.bare.size
    grass, soil = (Image.new("RGB", size, _ink(colour)) for colour in (light.grass, light.soil))
    grass.paste(soil, mask=relief.bare)
    grass.paste(_woods(relief, light), mask=relief.wood)
    return grass


def _woods(relief: Relief, light: Light) -> Image.Image:
    """Woods without end: crowns that are lighter where they face the sun."""
    height = np.pad(relief.crowns, 1, mode="edge")
    facing = -(height[1:-1, 2:] - height[1:-1, :-2]) * light.sun[0]
    facing -= (height[2:, 1:-1] - height[:-2, 1:-1]) * light.sun[1]
    lit = _grey((0.9 + 0.45 * facing + 0.1 * relief.crowns).clip(0.45, 1.6) / 1.6)
    levels = np.arange(256) * (1.6 / 255)
    tones = [lit.point(np.rint(levels * channel).astype(int).tolist()) for channel in light.tree]
    return Image.merge("RGB", tones)


# --- drawing

Brush = ImageDraw.ImageDraw


def _ink(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, round(value))) for value in colour)
    return red, green, blue


def _flat(points: Points) -> list[float]:
    """Tile pixels (N, 2) as the canvas coordinates Pillow takes."""
    coordinates: list[float] = ((points + MARGIN) * SCALE).ravel().tolist()
    return coordinates


def _fill(brush: Brush, points: Points, colour: Colour) -> None:
    brush.polygon(_flat(points), fill=_ink(colour))


def _draw_field(brush: Brush, item: Field, light: Light, date: int) -> None:
    colour = _mix(light.soil, light.grass, item.greenness[date])
    _fill(brush, item.corners, colour)
    if not item.furrows[date]:
        return
    start, end = item.corners[[0, 1]], item.corners[[3, 2]]
    for share in np.arange(0.03, 1, 0.06):
        line = np.stack([start[0] + (start[1] - start[0]) * share, end[0] + (end[1] - end[0]) * share])
        brush.line(_flat(line), fill=_ink(_scaled(colour, 0.86)), width=2)


def _draw_road(brush: Brush, road: Road, light: Light, size: int) -> None:
    _fill(brush, road.strip(road.width + 3), _mix(light.asphalt, (190, 185, 175), 0.6))
    _fill(brush, road.strip(road.width), light.asphalt)
    if road.lane_line:
        paint = _ink(_mix(light.asphalt, (235, 232, 220), 0.6))
        seen = road.seen(size, MARGIN)
        for index in seen[seen % 4 == 0].tolist():
            brush.line(_flat(road.points[index : index + 3]), fill=paint)


def _draw_site(brush: Brush, building: Building, light: Light, date: int) -> None:
    """The lot under a building, or what its place looks like while it is not there."""
    box = building.bounds
    if not building.present[date]:
        if building.bare_site:
            _fill(brush, building.place(box.grown(3).corners()), _scaled(light.soil, 1.05))
        return
    _fill(brush, building.place(box.grown(5).corners()), _mix(light.grass, light.soil, 0.15))
    if building.drive:
        middle = 0.5 * box.u0
        drive = Box(middle - 4, box.v0 - building.drive, middle + 4, box.v0)
        _fill(brush, building.place(drive.corners()), _mix(light.asphalt, (205, 200, 190), 0.6))


def _draw_car(brush: Brush, car: Car) -> None:
    _fill(brush, placed(Box(-4.5, -2, 4.5, 2).corners(), car.centre, car.angle), car.colour)
    _fill(brush, placed(Box(-2, -1.5, 1.5, 1.5).corners(), car.centre, car.angle), _scaled(car.colour, 0.6))


def _outline(tree: Tree, date: int, share: float = 1.0) -> Points:
    """A crown's outline (N, 2), or the same one at a smaller scale."""
    return tree.shape * (tree.radius[date] * share) + tree.centre


def _draw_tree(brush: Brush, tree: Tree, light: Light, date: int) -> None:
    """A crown with a lit side."""
    sun = np.asarray(light.sun)
    for share, tone in ((1.0, 0.8), (0.72, 1.05), (0.4, 1.3)):
        outline = _outline(tree, date, share) + sun * tree.radius[date] * (1 - share) * 0.6
        _fill(brush, outline, _scaled(light.tree, tone * tree.tone))


def _swept(corners: Points, throw: Points) -> Points:
    """What a rectangle (4, 2) covers on its way along `throw` (2,): (8, 2), its far sides moved."""
    ends = np.roll(corners, -1, 0)
    sides = ends - corners
    far = (sides[:, 1] * throw[0] - sides[:, 0] * throw[1] > 0)[:, None] * throw
    return np.stack([corners + far, ends + far], 1).reshape(-1, 2)


def _cast_shadows(canvas: Image.Image, scene: Scene, light: Light, date: int) -> None:
    """Darken the canvas where a building or a tree stands between it and the sun."""
    mask = Image.new("L", canvas.size)
    brush = ImageDraw.Draw(mask)
    away = -np.asarray(light.sun) * light.shadow
    for building in scene.buildings:
        if building.present[date]:
            for box in building.boxes:
                shadow = _swept(building.place(box.corners()), away * building.height)
                brush.polygon(_flat(shadow), fill=255)
    for tree in scene.trees:
        if tree.present[date]:
            brush.polygon(_flat(_outline(tree, date) + away * tree.radius[date] * 0.7), fill=255)
    dark = canvas.point([round(value * light.gloom) for value in range(256)] * 3)
    canvas.paste(dark, mask=mask)


# --- roofs


@dataclass(frozen=True)
class _Roofer:
    """Draws the roof of one building in its own frame."""

    brush: Brush
    building: Building
    sun: tuple[float, float]
    colour: Colour

    def fill(self, corners: Sequence[tuple[float, float]], tone: float) -> None:
        _fill(self.brush, self.building.place(corners), _scaled(self.colour, tone))

    def slope(self, corners: Sequence[tuple[float, float]], down: tuple[float, float]) -> None:
        """One sloping face; `down` is the way it falls, and it is bright if that is towards the sun."""
        c, s = math.cos(self.building.angle), math.sin(self.building.angle)
        facing = (c * down[0] - s * down[1]) * self.sun[0] + (s * down[0] + c * down[1]) * self.sun[1]
        self.fill(corners, 1 + 0.24 * facing)

    def pitched(self) -> None:
        """A gabled or hipped roof with its ridge along the street."""
        box = self.building.main
        inset = 0.45 * (box.v1 - box.v0) if self.building.roof == "hip" else 0.0
        a, b, c, d = box.corners()
        start, end = (box.u0 + inset, 0.0), (box.u1 - inset, 0.0)
        self.slope([a, b, end, start], (0, -1))
        self.slope([d, c, end, start], (0, 1))
        if inset:
            self.slope([a, d, start], (-1, 0))
            self.slope([b, c, end], (1, 0))
        if self.building.wing is not None:
            self._pitched_wing(self.building.wing)
        ridge = _flat(self.building.place([start, end]))
        self.brush.line(ridge, fill=_ink(_scaled(self.colour, 1.18)), width=2)

    def _pitched_wing(self, wing: Box) -> None:
        """Two faces whose ridge runs into the main roof and leaves two valleys there."""
        middle = (wing.u0 + wing.u1) / 2
        inner, outer = (middle, 0.15 * self.building.main.v1), (middle, wing.v1)
        a, b, c, d = wing.corners()
        self.slope([a, inner, outer, d], (-1, 0))
        self.slope([b, inner, outer, c], (1, 0))

    def flat(self) -> None:
        """A slab with a parapet and a few machines on it."""
        main = self.building.main
        for box in self.building.boxes:
            self.fill(box.corners(), 0.78)
        for box in self.building.boxes:
            self.fill(Box(box.u0, min(box.v0, main.v1 - 3), box.u1, box.v1).grown(-1.5).corners(), 1.0)
        u, v = 0.6 * main.u1, 0.5 * main.v1
        machines = ((-u, -v), (0.3 * u, 0.2 * v), (u, -0.4 * v))
        for x, y in machines[: int(self.building.height) % 4]:
            self.fill(Box(x, y, x, y).grown(2.6).corners(), 0.62)
            self.fill(Box(x, y, x, y).grown(1.6).corners(), 1.1)


def _draw_roof(brush: Brush, building: Building, light: Light, rng: Generator) -> None:
    """The roof in this date's shade of its colour: weathered a little, now and then a lot."""
    spread = 9.0 if rng.random() < 0.1 else 2.5
    red, green, blue = (value + float(rng.normal(0, spread)) for value in building.colour)
    roofer = _Roofer(brush, building, light.sun, (red, green, blue))
    if building.roof == "flat":
        roofer.flat()
    else:
        roofer.pitched()


# --- camera


def _view(canvas: Image.Image, size: int, shift: tuple[float, float]) -> Image.Image:
    """The tile (size, size) as seen `shift` pixels off the common grid."""
    left, top = ((MARGIN + value) * SCALE for value in shift)
    box = (left, top, left + size * SCALE, top + size * SCALE)
    return canvas.resize((size, size), Image.Resampling.HAMMING, box=box)


def _paint(scene: Scene, relief: Relief, light: Light, date: int, rng: Generator) -> Image.Image:
    """Everything that stands at a date, from the ground up, on a canvas with a margin."""
    side = (scene.size + 2 * MARGIN) * SCALE
    canvas = _ground(relief, light).resize((side, side), Image.Resampling.NEAREST)
    brush = ImageDraw.Draw(canvas)
    for item in scene.fields:
        _draw_field(brush, item, light, date)
    for building in scene.buildings:
        _draw_site(brush, building, light, date)
    for road in scene.roads:
        _draw_road(brush, road, light, scene.size)
    for car in scene.cars[date]:
        _draw_car(brush, car)
    _cast_shadows(canvas, scene, light, date)
    for tree in scene.trees:
        if tree.present[date]:
            _draw_tree(brush, tree, light, date)
    for building in scene.buildings:
        if building.present[date]:
            _draw_roof(brush, building, light, rng)
    return canvas


def _photograph(scene: Scene, relief: Relief, light: Light, date: int, rng: Generator) -> NDArray[np.uint8]:
    """The tile of a date, (size, size, 3), through a camera that blurs, tints and adds noise."""
    size = scene.size
    view = _view(_paint(scene, relief, light, date, rng), size, light.shift)
    levels = np.arange(256) - 118.0
    exposed = np.concatenate([levels * gain + (118 + light.offset) for gain in light.gain])
    exposure = exposed.clip(0, 255).round().astype(int).tolist()
    view = view.filter(ImageFilter.BoxBlur(light.blur)).point(exposure)
    pixels = np.asarray(view) * relief.texture
    noise = rng.random(pixels.shape, dtype=np.float32)  # even, which is quicker than normal
    noise *= np.float32(math.sqrt(12) * light.noise)
    pixels += noise
    pixels += np.float32(0.5 - math.sqrt(3) * light.noise)  # half a level rounds
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


def _label(scene: Scene) -> NDArray[np.bool_]:
    """Where a roof is there at one date only, (size, size), on the common grid."""
    side = (scene.size + 2 * MARGIN) * SCALE
    canvas = Image.new("L", (side, side))
    brush = ImageDraw.Draw(canvas)
    for building in scene.buildings:
        if building.present[BEFORE] != building.present[AFTER]:
            for box in building.boxes:
                brush.polygon(_flat(building.place(box.corners())), fill=255)
    return np.asarray(_view(canvas, scene.size, (0.0, 0.0))) > 127
