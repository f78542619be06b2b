"""Plans the objects of a synthetic scene, before anything is drawn."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from misgnet.synthetic.buildings import REACH, Change, District, plan_buildings
from misgnet.synthetic.scene import MARGIN, Box, Car, Colour, Field, Road, Scene, Tree, find_verge, placed

CAR_COLOURS: tuple[Colour, ...] = (
    (225, 225, 225),
    (60, 62, 66),
    (150, 40, 38),
    (50, 70, 120),
    (170, 172, 175),
)

_DISTRICTS = (
    District(  # houses
        length=(24, 44), depth=(20, 33), gap=(7, 18), street_spacing=(96, 136), pitched=0.95, wing=0.5, occupied=0.92,
    ),
    District(  # village
        length=(22, 40), depth=(18, 30), gap=(14, 40), street_spacing=(120, 180), pitched=0.85, wing=0.4, occupied=0.8,
    ),
    District(  # business
        length=(36, 68), depth=(28, 48), gap=(14, 30), street_spacing=(130, 180), pitched=0.2, wing=0.35, occupied=0.85,
    ),
)  # fmt: skip
_DISTRICT_CHANCES = (0.55, 0.2, 0.25)


def plan_scene(rng: Generator, size: int) -> Scene:
    """Plans a random scene for a tile of ``size`` pixels: first the streets, then the objects along them."""
    district = _DISTRICTS[rng.choice(len(_DISTRICTS), p=_DISTRICT_CHANCES)]
    angle = float(rng.uniform(0, np.pi))
    change = _plan_change(rng)
    roads = _plan_roads(rng, size, angle, district)
    buildings = plan_buildings(rng, size, roads, district, change)
    cars = (_plan_cars(rng, size, roads), _plan_cars(rng, size, roads))
    return Scene(
        size=size,
        roads=roads,
        buildings=buildings,
        trees=_plan_trees(rng, size, roads),
        fields=_plan_fields(rng, size, angle),
        cars=cars,
    )


def _plan_change(rng: Generator) -> Change:
    if rng.random() < 0.19:
        return Change(0.0, 0.0)
    appearing = 0.95 if rng.random() < 0.65 else 0.25
    return Change(float(rng.uniform(0.15, 0.7)), appearing)


def _plan_roads(rng: Generator, size: int, angle: float, district: District) -> tuple[Road, ...]:
    """Plans roughly parallel streets across the tile, and sometimes crossing ones."""
    roads, reach = [], 0.75 * size
    offset = -reach + float(rng.uniform(0, district.street_spacing[1]))
    while offset < reach:
        roads.append(_road(rng, size, angle, offset))
        offset += float(rng.uniform(*district.street_spacing))
    for _ in range(int(rng.random() < 0.45) * max(1, size // 256)):
        roads.append(_road(rng, size, angle + np.pi / 2, float(rng.uniform(-0.4, 0.4)) * size))
    near = [road for road in roads if len(road.indices_near(size, REACH)) > 2]
    return tuple(near or [_road(rng, size, angle, float(rng.uniform(-0.3, 0.3)) * size)])


def _road(rng: Generator, size: int, angle: float, offset: float) -> Road:
    along = np.arange(-0.8 * size - 16, 0.8 * size + 16, 4.0)
    bend = float(rng.uniform(0, 9)) if rng.random() < 0.5 else 0.0
    across = offset + bend * np.sin(along / float(rng.uniform(50, 110)) + float(rng.uniform(0, 6)))
    points = placed(np.stack([along, across], 1).tolist(), (size / 2, size / 2), angle)
    along_road = np.gradient(points, axis=0)
    normals = along_road[:, ::-1] * (-1, 1) / np.linalg.norm(along_road, axis=1, keepdims=True)
    return Road(points, normals, float(rng.uniform(11, 17)), bool(rng.random() < 0.6))


def _plan_trees(rng: Generator, size: int, roads: tuple[Road, ...]) -> tuple[Tree, ...]:
    """Plans single trees away from the streets; a few are planted or felled between the dates, all change in size."""
    trees, turns = [], np.arange(11) * (2 * np.pi / 11)
    circle = np.stack([np.cos(turns), np.sin(turns)], 1)
    verge, _ = find_verge(roads)
    for _ in range(int(rng.poisson(float(rng.uniform(6, 34)) * (size / 256) ** 2))):
        x, y = rng.uniform(-MARGIN, size + MARGIN, 2)
        radius, growth, draw = float(rng.uniform(3.5, 9)), float(rng.uniform(0.95, 1.25)), rng.random()
        shape = circle * rng.uniform(0.75, 1.1, (len(circle), 1))
        if (np.abs(verge - (x, y)) < radius + 8).all(1).any():
            continue
        there = (bool(draw > 0.1), bool(draw < 0.9))
        trees.append(Tree((float(x), float(y)), (radius, radius * growth), shape, float(rng.uniform(0.8, 1.15)), there))
    return tuple(trees)


def _plan_fields(rng: Generator, size: int, angle: float) -> tuple[Field, ...]:
    """Plans fields that are aligned with the streets and drawn below everything else."""
    fields = []
    for _ in range(int(rng.poisson(1.2 * size / 256))):
        x, y = rng.uniform(0, size, 2)
        width, depth = rng.uniform(40, 120, 2)
        box = Box(-width / 2, -depth / 2, width / 2, depth / 2)
        green = rng.uniform(0, 1, 2)
        furrows = (bool(rng.random() < 0.4), bool(rng.random() < 0.4))
        fields.append(
            Field(placed(box.corners(), (float(x), float(y)), angle), furrows, (float(green[0]), float(green[1])))
        )
    return tuple(fields)


def _plan_cars(rng: Generator, size: int, roads: tuple[Road, ...]) -> tuple[Car, ...]:
    cars = []
    for road in roads:
        for _ in range(int(rng.poisson(1.5 * size / 256))):
            index = int(rng.integers(1, len(road.points) - 1))
            x, y = road.points[index + 1] - road.points[index - 1]
            angle, across = float(np.arctan2(y, x)), float(rng.choice([-1.0, 1.0])) * road.width / 4
            px, py = placed([(0.0, across)], tuple(road.points[index].tolist()), angle)[0]
            cars.append(Car((float(px), float(py)), angle, CAR_COLOURS[rng.integers(len(CAR_COLOURS))]))
    return tuple(cars)
