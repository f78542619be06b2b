"""Draws roofs: gabled or hipped roofs with faces shaded by the sun, and flat roofs with machines on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import Generator

from misgnet.synthetic.drawing import Brush, fill_polygon, on_canvas
from misgnet.synthetic.light import Light, ink, scaled
from misgnet.synthetic.scene import Box, Building, Colour


@dataclass(frozen=True)
class _Roofer:
    """Draws the roof of one building in the building's coordinates."""

    brush: Brush
    building: Building
    sun: tuple[float, float]
    colour: Colour

    def fill(self, corners: Sequence[tuple[float, float]], tone: float) -> None:
        fill_polygon(self.brush, self.building.place(corners), scaled(self.colour, tone))

    def slope(self, corners: Sequence[tuple[float, float]], down: tuple[float, float]) -> None:
        """Draws one sloping face, which is brighter if its downward direction ``down`` points towards the sun."""
        c, s = math.cos(self.building.angle), math.sin(self.building.angle)
        facing = (c * down[0] - s * down[1]) * self.sun[0] + (s * down[0] + c * down[1]) * self.sun[1]
        self.fill(corners, 1 + 0.24 * facing)

    def pitched(self) -> None:
        """Draws a gabled or hipped roof with its ridge parallel to the street."""
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
        ridge = on_canvas(self.building.place([start, end]))
        self.brush.line(ridge, fill=ink(scaled(self.colour, 1.18)), width=2)

    def _pitched_wing(self, wing: Box) -> None:
        """Draws the two faces of a wing, whose ridge meets the main roof and forms two valleys with it."""
        middle = (wing.u0 + wing.u1) / 2
        inner, outer = (middle, 0.15 * self.building.main.v1), (middle, wing.v1)
        a, b, c, d = wing.corners()
        self.slope([a, inner, outer, d], (-1, 0))
        self.slope([b, inner, outer, c], (1, 0))

    def flat(self) -> None:
        """Draws a flat roof with a parapet and a few machines."""
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


def draw_roof(brush: Brush, building: Building, light: Light, rng: Generator) -> None:
    """Draws a roof; its colour differs a little from date to date, and sometimes a lot."""
    spread = 9.0 if rng.random() < 0.1 else 2.5
    red, green, blue = (value + float(rng.normal(0, spread)) for value in building.colour)
    roofer = _Roofer(brush, building, light.sun, (red, green, blue))
    if building.roof == "flat":
        roofer.flat()
    else:
        roofer.pitched()
