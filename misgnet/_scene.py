"""What stands where in a synthetic scene, before anything is drawn.

All lengths and coordinates are pixels of the tile (x to the right, y down, origin at the tile's
upper left corner); things may reach past the tile's edges. All angles are radians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (N, 2): x, y in pixels
Colour = tuple[float, float, float]  # RGB, 0..255
Presence = tuple[bool, bool]  # there at the first date, there at the second

MARGIN = 8  # pixels of scene around the tile, so that a shifted view never runs out of it

ROOF_COLOURS: dict[str, tuple[Colour, ...]] = {
    "pitched": ((152, 88, 66), (136, 74, 60), (124, 98, 82), (122, 116, 112), (94, 90, 92), (178, 152, 122)),
    "flat": ((214, 212, 206), (184, 184, 182), (150, 150, 152), (88, 120, 164), (196, 188, 170)),
}
CAR_COLOURS: tuple[Colour, ...] = (
    (225, 225, 225), (60, 62, 66), (150, 40, 38), (50, 70, 120), (170, 172, 175),
)


@dataclass(frozen=True)
class Box:
    """A rectangle in a building's own frame: u runs along the street, v away from it."""

    u0: float
    v0: float
    u1: float
    v1: float

    def grown(self, by: float) -> Box:
        """The rectangle with every side moved outward by `by` pixels (inward if negative)."""
        return Box(self.u0 - by, self.v0 - by, self.u1 + by, self.v1 + by)

    def corners(self) -> list[tuple[float, float]]:
        """The four corners in order, own frame."""
        return [(self.u0, self.v0), (self.u1, self.v0), (self.u1, self.v1), (self.u0, self.v1)]


@dataclass(frozen=True)
class Building:
    """One building: `main` centred on `centre`, with an optional `wing` that sticks out of its v1 side."""

    centre: tuple[float, float]
    angle: float
    main: Box
    wing: Box | None
    roof: str  # "gable", "hip" or "flat"
    colour: Colour
    height: float  # pixels; the shadow is height times the date's shadow length
    present: Presence
    bare_site: bool  # where it is absent: construction soil if true, else whatever grows there
    drive: float  # how far the driveway reaches from v0 towards the street, pixels; 0: none

    @property
    def boxes(self) -> list[Box]:
        """The rectangles whose union is the footprint."""
        return [self.main] if self.wing is None else [self.main, self.wing]

    @property
    def bounds(self) -> Box:
        """The smallest rectangle of the own frame that holds the footprint."""
        boxes = self.boxes
        return Box(min(b.u0 for b in boxes), min(b.v0 for b in boxes),
                   max(b.u1 for b in boxes), max(b.v1 for b in boxes))

    def place(self, points: Sequence[tuple[float, float]]) -> Points:
        """Own frame (N, 2) to tile pixels (N, 2)."""
        return placed(points, self.centre, self.angle)


@dataclass(frozen=True)
class Road:
    """A strip of asphalt along `points`, (N, 2), a few pixels apart."""

    points: Points
    normals: Points  # of length 1, to one side all along, (N, 2)
    width: float
    lane_line: bool

    def strip(self, width: float) -> Points:
        """The outline (2 N, 2) of a strip of `width` along the road."""
        across = self.normals * (0.5 * width)
        return np.concatenate([self.points + across, (self.points - across)[::-1]])

    def seen(self, size: int, margin: float) -> NDArray[np.intp]:
        """Which points lie in a tile of `size` pixels or at most `margin` pixels beside it."""
        return np.flatnonzero((np.abs(self.points - size / 2) < size / 2 + margin).all(1))


@dataclass(frozen=True)
class Tree:
    """One crown: a wobbly disc."""

    centre: tuple[float, float]
    radius: tuple[float, float]  # at the first and at the second date
    shape: Points  # the outline of a crown of radius 1 around the origin
    tone: float  # brightness factor
    present: Presence


@dataclass(frozen=True)
class Field:
    """A farmed parcel or a strip of bare soil, `corners` (4, 2)."""

    corners: Points
    furrows: Presence  # whether it shows plough lines
    greenness: tuple[float, float]  # 0 soil .. 1 crop, at each date


@dataclass(frozen=True)
class Car:
    """A parked or driving car."""

    centre: tuple[float, float]
    angle: float
    colour: Colour


@dataclass(frozen=True)
class Scene:
    """Everything that stands on `size` x `size` pixels at either date."""

    size: int
    roads: tuple[Road, ...] = ()
    buildings: tuple[Building, ...] = ()
    trees: tuple[Tree, ...] = ()
    fields: tuple[Field, ...] = ()
    cars: tuple[tuple[Car, ...], tuple[Car, ...]] = field(default=((), ()))


@dataclass(frozen=True)
class _Change:
    """How a pair changes: the chance that a building changes, and that a change is an appearance."""

    share: float
    appearing: float


@dataclass(frozen=True)
class _District:
    """How a neighbourhood is built: ranges of lengths in pixels, and chances."""

    length: tuple[float, float]
    depth: tuple[float, float]
    gap: tuple[float, float]
    street_spacing: tuple[float, float]
    pitched: float
    wing: float
    occupied: float


_DISTRICTS = (
    _District((24, 44), (20, 33), (7, 18), (96, 136), pitched=0.95, wing=0.5, occupied=0.92),  # houses
    _District((22, 40), (18, 30), (14, 40), (120, 180), pitched=0.85, wing=0.4, occupied=0.8),  # village
    _District((36, 68), (28, 48), (14, 30), (130, 180), pitched=0.2, wing=0.35, occupied=0.85),  # business
)
_REACH = 50.0  # streets matter this far beside the tile: a building along them may be seen
_DISTRICT_CHANCES = (0.55, 0.2, 0.25)


def placed(points: Sequence[tuple[float, float]], centre: tuple[float, float], angle: float) -> Points:
    """Points (N, 2) of a frame at `centre`, turned by `angle`, in tile pixels (N, 2)."""
    c, s, (x, y) = math.cos(angle), math.sin(angle), centre
    return np.array([(x + c * u - s * v, y + s * u + c * v) for u, v in points])


def _verge(roads: tuple[Road, ...]) -> tuple[Points, Points]:
    """All points along the streets, (N, 2), and half the street's width at each, (N, 1)."""
    halves = [np.full((len(road.points), 1), road.width / 2) for road in roads]
    return np.concatenate([road.points for road in roads]), np.concatenate(halves)


def plan_scene(rng: Generator, size: int) -> Scene:
    """Draw up a scene for a tile of `size` pixels: streets first, then what lines them."""
    district = _DISTRICTS[rng.choice(len(_DISTRICTS), p=_DISTRICT_CHANCES)]
    angle = float(rng.uniform(0, np.pi))
    change = _plan_change(rng)
    roads = _plan_roads(rng, size, angle, district)
    buildings = _plan_buildings(rng, size, roads, district, change)
    cars = (_plan_cars(rng, size, roads), _plan_cars(rng, size, roads))
    return Scene(size, roads, buildings, _plan_trees(rng, size, roads), _plan_fields(rng, size, angle), cars)


def _plan_change(rng: Generator) -> _Change:
    if rng.random() < 0.19:
        return _Change(0.0, 0.0)
    appearing = 0.95 if rng.random() < 0.65 else 0.25
    return _Change(float(rng.uniform(0.15, 0.7)), appearing)


def _plan_roads(rng: Generator, size: int, angle: float, district: _District) -> tuple[Road, ...]:
    """Roughly parallel streets across the tile, and now and then a crossing one."""
    roads, reach = [], 0.75 * size
    offset = -reach + float(rng.uniform(0, district.street_spacing[1]))
    while offset < reach:
        roads.append(_road(rng, size, angle, offset))
        offset += float(rng.uniform(*district.street_spacing))
    for _ in range(int(rng.random() < 0.45) * max(1, size // 256)):
        roads.append(_road(rng, size, angle + np.pi / 2, float(rng.uniform(-0.4, 0.4)) * size))
    near = [road for road in roads if len(road.seen(size, _REACH)) > 2]
    return tuple(near or [_road(rng, size, angle, float(rng.uniform(-0.3, 0.3)) * size)])


def _road(rng: Generator, size: int, angle: float, offset: float) -> Road:
    along = np.arange(-0.8 * size - 16, 0.8 * size + 16, 4.0)
    bend = float(rng.uniform(0, 9)) if rng.random() < 0.5 else 0.0
    across = offset + bend * np.sin(along / float(rng.uniform(50, 110)) + float(rng.uniform(0, 6)))
    points = placed(np.stack([along, across], 1).tolist(), (size / 2, size / 2), angle)
    along_road = np.gradient(points, axis=0)
    normals = along_road[:, ::-1] * (-1, 1) / np.linalg.norm(along_road, axis=1, keepdims=True)
    return Road(points, normals, float(rng.uniform(11, 17)), bool(rng.random() < 0.6))


def _plan_buildings(
    rng: Generator, size: int, roads: tuple[Road, ...], district: _District, change: _Change
) -> tuple[Building, ...]:
    """Walk along both sides of every street and set down whatever fits."""
    buildings: list[Building] = []
    lots: list[Points] = []
    verge = _verge(roads)
    for road in roads:
        for side in (1.0, -1.0):
            seen = road.seen(size, _REACH)
            along = 4.0 * float(seen[0]) + float(rng.uniform(-20, 20))
            while along < 4.0 * seen[-1]:
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
    """A place beside the road: its v axis points away from the street."""
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


def _building(
    rng: Generator, district: _District, change: _Change, spot: _Spot, extent: tuple[float, float]
) -> Building:
    centre, angle, setback = spot
    length, depth = extent
    main = Box(-length / 2, -depth / 2, length / 2, depth / 2)
    pitched = rng.random() < district.pitched
    roof = str(rng.choice(["gable", "hip"])) if pitched else "flat"
    colours = ROOF_COLOURS["pitched" if pitched else "flat"]
    red, green, blue = colours[rng.integers(len(colours))]
    light = float(rng.uniform(0.88, 1.12))
    return Building(
        centre, angle, main, _wing(rng, main) if rng.random() < district.wing else None, roof,
        (red * light, green * light, blue * light), float(rng.uniform(5, 9)), _presence(rng, change),
        bool(rng.random() < 0.4), setback + 2 if rng.random() < 0.6 else 0.0,
    )


def _wing(rng: Generator, main: Box) -> Box:
    """A narrower part at one end that sticks out of the v1 side and makes an L or a T."""
    length, depth = main.u1 - main.u0, main.v1 - main.v0
    width = float(rng.uniform(0.35, 0.5)) * length
    start = main.u0 + float(rng.choice([0.0, 0.0, 0.5, 1.0])) * (length - width)
    return Box(start, main.v1, start + width, main.v1 + float(rng.uniform(0.3, 0.5)) * depth)


def _presence(rng: Generator, change: _Change) -> Presence:
    changes, appears = rng.random() < change.share, rng.random() < change.appearing
    return (not appears, bool(appears)) if changes else (True, True)


def _free(building: Building, lot: Points, verge: tuple[Points, Points], lots: list[Points]) -> bool:
    """Whether a building keeps 3 pixels off the streets, and its lot (4, 2) off the other lots."""
    box = building.bounds.grown(3)
    c, s = math.cos(building.angle), math.sin(building.angle)
    local = (verge[0] - building.centre) @ np.array([[c, -s], [s, c]])
    if ((local > (box.u0, box.v0) - verge[1]) & (local < (box.u1, box.v1) + verge[1])).all(1).any():
        return False
    return all(_apart(lot, other) for other in lots)


def _apart(first: Points, second: Points) -> bool:
    """Whether a straight line along one of their sides parts two rectangles, each (4, 2)."""
    middles = 0.5 * (first[0] + first[2] - second[0] - second[2])
    if math.hypot(*middles) > 0.5 * (math.dist(first[0], first[2]) + math.dist(second[0], second[2])):
        return True
    axes = np.stack([first[1] - first[0], first[2] - first[1], second[1] - second[0], second[2] - second[1]])
    a, b = first @ axes.T, second @ axes.T
    return bool(((a.max(0) < b.min(0)) | (b.max(0) < a.min(0))).any())


def _plan_trees(rng: Generator, size: int, roads: tuple[Road, ...]) -> tuple[Tree, ...]:
    """Single trees off the streets; a few are planted or felled between the dates, all grow a little."""
    trees, turns = [], np.arange(11) * (2 * np.pi / 11)
    circle = np.stack([np.cos(turns), np.sin(turns)], 1)
    verge, _ = _verge(roads)
    for _ in range(int(rng.poisson(float(rng.uniform(6, 34)) * (size / 256) ** 2))):
        x, y = rng.uniform(-MARGIN, size + MARGIN, 2)
        radius, growth, draw = float(rng.uniform(3.5, 9)), float(rng.uniform(0.95, 1.25)), rng.random()
        shape = circle * rng.uniform(0.75, 1.1, (len(circle), 1))
        if (np.abs(verge - (x, y)) < radius + 8).all(1).any():
            continue
        there = (bool(draw > 0.1), bool(draw < 0.9))
        trees.append(Tree((float(x), float(y)), (radius, radius * growth), shape,
                          float(rng.uniform(0.8, 1.15)), there))
    return tuple(trees)


def _plan_fields(rng: Generator, size: int, angle: float) -> tuple[Field, ...]:
    """Parcels aligned with the streets, under everything else."""
    fields = []
    for _ in range(int(rng.poisson(1.2 * size / 256))):
        x, y = rng.uniform(0, size, 2)
        width, depth = rng.uniform(40, 120, 2)
        box = Box(-width / 2, -depth / 2, width / 2, depth / 2)
        green = rng.uniform(0, 1, 2)
        furrows = (bool(rng.random() < 0.4), bool(rng.random() < 0.4))
        fields.append(Field(placed(box.corners(), (float(x), float(y)), angle), furrows,
                            (float(green[0]), float(green[1]))))
    return tuple(fields)


def _plan_cars(rng: Generator, size: int, roads: tuple[Road, ...]) -> tuple[Car, ...]:
    cars = []
    for road in roads:
        for _ in range(int(rng.poisson(1.5 * size / 256))):
            index = int(rng.integers(1, len(road.points) - 1))
            x, y = road.points[index + 1] - road.points[index - 1]
            angle, lane = float(np.arctan2(y, x)), float(rng.choice([-1.0, 1.0])) * road.width / 4
            px, py = placed([(0.0, lane)], tuple(road.points[index].tolist()), angle)[0]
            cars.append(Car((float(px), float(py)), angle, CAR_COLOURS[rng.integers(len(CAR_COLOURS))]))
    return tuple(cars)
