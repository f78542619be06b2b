"""Defines the objects of a synthetic scene as value types, independent of drawing.

All lengths and coordinates are pixels of the tile (x to the right, y down, origin at the upper left corner of the
tile). Objects may extend beyond the tile. All angles are in radians. A building has its own coordinates: u along the
street, v away from it, origin at its centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (N, 2): x, y in pixels
Colour = tuple[float, float, float]  # RGB, 0..255
Presence = tuple[bool, bool]  # present at the first date, present at the second date

MARGIN = 8  # pixels of scene around the tile, so that a shifted view stays inside it


@dataclass(frozen=True)
class Box:
    """A rectangle in the coordinates (u, v) of a building."""

    u0: float
    v0: float
    u1: float
    v1: float

    def grown(self, by: float) -> Box:
        """Returns the rectangle with every side moved outward by ``by`` pixels (inward if negative)."""
        return Box(self.u0 - by, self.v0 - by, self.u1 + by, self.v1 + by)

    def corners(self) -> list[tuple[float, float]]:
        """Returns the four corners in order."""
        return [(self.u0, self.v0), (self.u1, self.v0), (self.u1, self.v1), (self.u0, self.v1)]


@dataclass(frozen=True, kw_only=True)
class Building:
    """One building."""

    centre: tuple[float, float]  # of the main part
    angle: float
    main: Box
    wing: Box | None  # extends from the v1 side of the main part
    roof: str  # "gable", "hip" or "flat"
    colour: Colour
    height: float  # pixels; the shadow is height times the date's shadow length
    present: Presence
    bare_site: bool  # while it is absent, its lot is bare soil if true, else unchanged ground
    drive: float  # length of the driveway from the v0 side towards the street, pixels; 0: none

    @property
    def boxes(self) -> list[Box]:
        """Returns the rectangles that form the footprint."""
        return [self.main] if self.wing is None else [self.main, self.wing]

    @property
    def bounds(self) -> Box:
        """Returns the smallest rectangle that contains the footprint."""
        boxes = self.boxes
        return Box(
            min(b.u0 for b in boxes), min(b.v0 for b in boxes), max(b.u1 for b in boxes), max(b.v1 for b in boxes)
        )

    def place(self, points: Sequence[tuple[float, float]]) -> Points:
        """Converts building coordinates (N, 2) to tile pixels (N, 2)."""
        return placed(points, self.centre, self.angle)


@dataclass(frozen=True)
class Road:
    """A strip of asphalt along a line of points."""

    points: Points  # (N, 2), a few pixels apart
    normals: Points  # (N, 2), unit vectors, all to the same side
    width: float
    lane_line: bool  # whether it has a painted centre line

    def strip(self, width: float) -> Points:
        """Returns the outline (2 N, 2) of a strip of ``width`` along the road."""
        across = self.normals * (0.5 * width)
        return np.concatenate([self.points + across, (self.points - across)[::-1]])

    def indices_near(self, size: int, margin: float) -> NDArray[np.intp]:
        """Returns the indices of points inside a tile of ``size`` pixels or at most ``margin`` pixels outside it."""
        return np.flatnonzero((np.abs(self.points - size / 2) < size / 2 + margin).all(1))


@dataclass(frozen=True)
class Tree:
    """A tree, drawn as an irregular disc."""

    centre: tuple[float, float]
    radius: tuple[float, float]  # at the first and at the second date
    shape: Points  # the outline of a crown of radius 1 around the origin
    tone: float  # brightness factor
    present: Presence


@dataclass(frozen=True)
class Field:
    """A field or a strip of bare soil."""

    corners: Points  # (4, 2)
    furrows: Presence  # whether plough lines are visible
    greenness: tuple[float, float]  # 0 soil .. 1 crop, at each date


@dataclass(frozen=True)
class Car:
    """A parked or driving car."""

    centre: tuple[float, float]
    angle: float
    colour: Colour


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All objects on ``size`` x ``size`` pixels at both dates."""

    size: int
    roads: tuple[Road, ...] = ()
    buildings: tuple[Building, ...] = ()
    trees: tuple[Tree, ...] = ()
    fields: tuple[Field, ...] = ()
    cars: tuple[tuple[Car, ...], tuple[Car, ...]] = field(default=((), ()))


def placed(points: Sequence[tuple[float, float]], centre: tuple[float, float], angle: float) -> Points:
    """Rotates points (N, 2) by ``angle`` and moves them by ``centre``; returns tile pixels (N, 2)."""
    c, s, (x, y) = math.cos(angle), math.sin(angle), centre
    return np.array([(x + c * u - s * v, y + s * u + c * v) for u, v in points])


def find_verge(roads: tuple[Road, ...]) -> tuple[Points, Points]:
    """Returns all points along the streets, (N, 2), and half the street's width at each, (N, 1)."""
    halves = [np.full((len(road.points), 1), road.width / 2) for road in roads]
    return np.concatenate([road.points for road in roads]), np.concatenate(halves)
