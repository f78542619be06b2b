"""Plans the positions and properties of the buildings of a scene."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from misgnet.synthetic.scene import Box, Building, Colour, Points, Presence, Road, find_verge

REACH = 50.0  # pixels; buildings along streets up to this far outside the tile may be visible

ROOF_COLOURS: dict[str, tuple[Colour, ...]] = {
    "pitched": ((152, 88, 66), (136, 74, 60), (124, 98, 82), (122, 116, 112), (94, 90, 92), (178, 152, 122)),
    "flat": ((214, 212, 206), (184, 184, 182), (150, 150, 152), (88, 120, 164), (196, 188, 170)),
}


@dataclass(frozen=True)
class Change:
    """Probabilities of change in a pair."""

    share: float  # that a building changes
    appearing: float  # that a changed building appears rather than disappears


@dataclass(frozen=True, kw_only=True)
class District:
    """Parameters of a neighbourhood: ranges in pixels, and probabilities."""

    length: tuple[float, float]  # of a building along the street
    depth: tuple[float, float]  # of a building away from the street
    gap: tuple[float, float]  # between buildings
    street_spacing: tuple[float, float]
    pitched: float  # probability of a gabled or hipped roof
    wing: float  # probability of a wing
    occupied: float  # probability that a lot has a building


def plan_buildings(
    rng: Generator, size: int, roads: tuple[Road, ...], district: District, change: Change
) -> tuple[Building, ...]:
    """Places buildings along both sides of every street wherever they fit."""
    buildings: list[Building] = []
    lots: list[Points] = []
    verge = find_verge(roads)
    for road in roads:
        for side in (1.0, -1.0):
            near = road.indices_near(size, REACH)
            along = 4.0 * float(near[0]) + float(rng.uniform(-20, 20))
            while along < 4.0 * near[-1]:
                length, depth = float(rng.uniform(*district.length)), float(rng.uniform(*district.depth))
                spot = _spot(rng, road, along + length / 2, side, depth)
                along += length + float(rng.uniform(*district.gap))
                if spot is None or not _inside(spot[0], size, 0.3 * length):
                    continue
                building = _building(rng, district, change, spot, (length, depth))
                lot = building.place(building.bounds.grown(1.5).corners())
                if rng.random() < district.occupied and _free(building, lot, verge, lots):
                    buildings.append(building)
                    lots.append(lot)
    return tuple(buildings)


_Spot = tuple[tuple[float, float], float, float]  # centre, angle, distance to the kerb


def _spot(rng: Generator, road: Road, along: float, side: float, depth: float) -> _Spot | None:
    """Returns a building position beside the road, or None at its ends; the v axis points away from the street."""
    index = int(along / 4.0)
    if not 0 < index < len(road.points) - 1:
        return None
    away_x, away_y = (side * road.normals[index]).tolist()
    setback = float(rng.uniform(6, 14))
    distance = road.width / 2 + setback + depth / 2
    x, y = road.points[index].tolist()
    angle = math.atan2(-away_x, away_y) + float(rng.normal(0, 0.03))
    return (x + away_x * distance, y + away_y * distance), angle, setback


def _inside(centre: tuple[float, float], size: int, slack: float) -> bool:
    return all(-slack < value < size + slack for value in centre)


def _building(rng: Generator, district: District, change: Change, spot: _Spot, extent: tuple[float, float]) -> Building:
    centre, angle, setback = spot
    length, depth = extent
    main = Box(-length / 2, -depth / 2, length / 2, depth / 2)
    pitched = rng.random() < district.pitched
    roof = str(rng.choice(["gable", "hip"])) if pitched else "flat"
    colours = ROOF_COLOURS["pitched" if pitched else "flat"]
    red, green, blue = colours[rng.integers(len(colours))]
    light = float(rng.uniform(0.88, 1.12))
    return Building(
        centre=centre,
        angle=angle,
        main=main,
        wing=_wing(rng, main) if rng.random() < district.wing else None,
        roof=roof,
        colour=(red * light, green * light, blue * light),
        height=float(rng.uniform(5, 9)),
        present=_presence(rng, change),
        bare_site=bool(rng.random() < 0.4),
        drive=setback + 2 if rng.random() < 0.6 else 0.0,
    )


def _wing(rng: Generator, main: Box) -> Box:
    """Returns a narrower part that extends from the v1 side and makes the building L- or T-shaped."""
    length, depth = main.u1 - main.u0, main.v1 - main.v0
    width = float(rng.uniform(0.35, 0.5)) * length
    start = main.u0 + float(rng.choice([0.0, 0.0, 0.5, 1.0])) * (length - width)
    return Box(start, main.v1, start + width, main.v1 + float(rng.uniform(0.3, 0.5)) * depth)


def _presence(rng: Generator, change: Change) -> Presence:
    changes, appears = rng.random() < change.share, rng.random() < change.appearing
    return (not appears, bool(appears)) if changes else (True, True)


def _free(building: Building, lot: Points, verge: tuple[Points, Points], lots: list[Points]) -> bool:
    """Returns whether a building is at least 3 pixels from all streets and its lot (4, 2) is apart from other lots."""
    box = building.bounds.grown(3)
    c, s = math.cos(building.angle), math.sin(building.angle)
    local = (verge[0] - building.centre) @ np.array([[c, -s], [s, c]])
    if ((local > (box.u0, box.v0) - verge[1]) & (local < (box.u1, box.v1) + verge[1])).all(1).any():
        return False
    return all(_apart(lot, other) for other in lots)


def _apart(first: Points, second: Points) -> bool:
    """Returns whether two rectangles (4, 2) can be separated by a line parallel to a side (separating axis theorem)."""
    middles = 0.5 * (first[0] + first[2] - second[0] - second[2])
    if math.hypot(*middles) > 0.5 * (math.dist(first[0], first[2]) + math.dist(second[0], second[2])):
        return True
    axes = np.stack([first[1] - first[0], first[2] - first[1], second[1] - second[0], second[2] - second[1]])
    a, b = first @ axes.T, second @ axes.T
    return bool(((a.max(0) < b.min(0)) | (b.max(0) < a.min(0))).any())
