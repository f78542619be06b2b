"""What a synthetic scene is made of: value types without a picture.

All lengths and coordinates are pixels of the tile (x to the right, y down, origin at the tile's
upper left corner); things may reach past the tile's edges. All angles are radians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (N, 2): x, y in pixels
Colour = tuple[float, float, float]  # RGB, 0..255
Presence = tuple[bool, bool]  # there at the first date, there at the second

MARGIN = 8  # pixels of scene around the tile, so that a shifted view never runs out of it


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


@dataclass(frozen=True, kw_only=True)
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
        return Box(
            min(b.u0 for b in boxes), min(b.v0 for b in boxes), max(b.u1 for b in boxes), max(b.v1 for b in boxes)
        )

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


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that stands on `size` x `size` pixels at either date."""

    size: int
    roads: tuple[Road, ...] = ()
    buildings: tuple[Building, ...] = ()
    trees: tuple[Tree, ...] = ()
    fields: tuple[Field, ...] = ()
    cars: tuple[tuple[Car, ...], tuple[Car, ...]] = field(default=((), ()))


def placed(points: Sequence[tuple[float, float]], centre: tuple[float, float], angle: float) -> Points:
    """Points (N, 2) of a frame at `centre`, turned by `angle`, in tile pixels (N, 2)."""
    c, s, (x, y) = math.cos(angle), math.sin(angle), centre
    return np.array([(x + c * u - s * v, y + s * u + c * v) for u, v in points])


def find_verge(roads: tuple[Road, ...]) -> tuple[Points, Points]:
    """All points along the streets, (N, 2), and half the street's width at each, (N, 1)."""
    halves = [np.full((len(road.points), 1), road.width / 2) for road in roads]
    return np.concatenate([road.points for road in roads]), np.concatenate(halves)
