"""Draws fields, roads, building lots, cars, trees and shadows; :mod:`misgnet.synthetic.roofs` draws the roofs.

The canvas is the tile with its margin, at ``SCALE`` canvas pixels per tile pixel.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from misgnet.synthetic.light import Light, ink, mix, scaled
from misgnet.synthetic.scene import MARGIN, Box, Building, Car, Colour, Field, Points, Road, Scene, Tree, placed

SCALE = 2  # canvas pixels per tile pixel, for smooth edges

Brush = ImageDraw.ImageDraw


def on_canvas(points: Points) -> list[float]:
    """Converts tile pixels (N, 2) to a flat list of canvas coordinates for Pillow."""
    coordinates: list[float] = ((points + MARGIN) * SCALE).ravel().tolist()
    return coordinates


def fill_polygon(brush: Brush, points: Points, colour: Colour) -> None:
    brush.polygon(on_canvas(points), fill=ink(colour))


def draw_field(brush: Brush, item: Field, light: Light, date: int) -> None:
    colour = mix(light.soil, light.grass, item.greenness[date])
    fill_polygon(brush, item.corners, colour)
    if not item.furrows[date]:
        return
    start, end = item.corners[[0, 1]], item.corners[[3, 2]]
    for share in np.arange(0.03, 1, 0.06):
        line = np.stack([start[0] + (start[1] - start[0]) * share, end[0] + (end[1] - end[0]) * share])
        brush.line(on_canvas(line), fill=ink(scaled(colour, 0.86)), width=2)


def draw_road(brush: Brush, road: Road, light: Light, size: int) -> None:
    fill_polygon(brush, road.strip(road.width + 3), mix(light.asphalt, (190, 185, 175), 0.6))
    fill_polygon(brush, road.strip(road.width), light.asphalt)
    if road.lane_line:
        paint = ink(mix(light.asphalt, (235, 232, 220), 0.6))
        near = road.indices_near(size, MARGIN)
        for index in near[near % 4 == 0].tolist():
            brush.line(on_canvas(road.points[index : index + 3]), fill=paint)


def draw_site(brush: Brush, building: Building, light: Light, date: int) -> None:
    """Draws the lot around a building, or bare soil if the building is absent and has a bare site."""
    box = building.bounds
    if not building.present[date]:
        if building.bare_site:
            fill_polygon(brush, building.place(box.grown(3).corners()), scaled(light.soil, 1.05))
        return
    fill_polygon(brush, building.place(box.grown(5).corners()), mix(light.grass, light.soil, 0.15))
    if building.drive:
        middle = 0.5 * box.u0
        drive = Box(middle - 4, box.v0 - building.drive, middle + 4, box.v0)
        fill_polygon(brush, building.place(drive.corners()), mix(light.asphalt, (205, 200, 190), 0.6))


def draw_car(brush: Brush, car: Car) -> None:
    fill_polygon(brush, placed(Box(-4.5, -2, 4.5, 2).corners(), car.centre, car.angle), car.colour)
    fill_polygon(brush, placed(Box(-2, -1.5, 1.5, 1.5).corners(), car.centre, car.angle), scaled(car.colour, 0.6))


def _outline(tree: Tree, date: int, share: float = 1.0) -> Points:
    """Returns the outline of a crown (N, 2), scaled by ``share``."""
    return tree.shape * (tree.radius[date] * share) + tree.centre


def draw_tree(brush: Brush, tree: Tree, light: Light, date: int) -> None:
    """Draws a crown with a brighter side towards the sun."""
    sun = np.asarray(light.sun)
    for share, tone in ((1.0, 0.8), (0.72, 1.05), (0.4, 1.3)):
        outline = _outline(tree, date, share) + sun * tree.radius[date] * (1 - share) * 0.6
        fill_polygon(brush, outline, scaled(light.tree, tone * tree.tone))


def _swept(corners: Points, throw: Points) -> Points:
    """Returns the outline (8, 2) of the area that a rectangle (4, 2) covers while it moves by ``throw`` (2,)."""
    ends = np.roll(corners, -1, 0)
    sides = ends - corners
    far = (sides[:, 1] * throw[0] - sides[:, 0] * throw[1] > 0)[:, None] * throw
    return np.stack([corners + far, ends + far], 1).reshape(-1, 2)


def cast_shadows(canvas: Image.Image, scene: Scene, light: Light, date: int) -> None:
    """Darkens the shadows of buildings and trees."""
    mask = Image.new("L", canvas.size)
    brush = ImageDraw.Draw(mask)
    away = -np.asarray(light.sun) * light.shadow
    for building in scene.buildings:
        if building.present[date]:
            for box in building.boxes:
                shadow = _swept(building.place(box.corners()), away * building.height)
                brush.polygon(on_canvas(shadow), fill=255)
    for tree in scene.trees:
        if tree.present[date]:
            brush.polygon(on_canvas(_outline(tree, date) + away * tree.radius[date] * 0.7), fill=255)
    dark = canvas.point([round(value * light.gloom) for value in range(256)] * 3)
    canvas.paste(dark, mask=mask)
