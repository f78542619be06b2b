"""Tests the quick look: its panels, how change and missing data are drawn, and the scale bar and arrow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from misgnet_runtime.raster.drawing import (
    CHANGE_RED,
    hatched,
    marked,
    north_of,
    outline_of,
    scale_bar,
)
from misgnet_runtime.raster.overview import Overview
from misgnet_runtime.raster.quicklook import Labels, write_quicklook
from misgnet_runtime.raster.tiling import Span

LABELS = Labels(
    names=("before.tif", "after.tif"), dates=("2019-05-02", ""), change="1.00 % changed",
    steps=((0.5, 0.0), (0.0, -0.5)),
)  # fmt: skip


def look(path: Path, height: int, width: int, labels: Labels = LABELS, valid: bool = True) -> np.ndarray:
    """Writes a scene whose left half is dark and whose right half is changed; returns the picture."""
    before = np.full((height, width, 3), 40, np.uint8)
    changed = np.zeros((height, width), bool)
    changed[:, width // 2 :] = True
    found = Overview(
        rows=Span(0, height), columns=Span(0, width), step=1, before=before, after=before + np.uint8(60),
        valid=np.full((height, width), valid), changed=changed,
    )  # fmt: skip
    write_quicklook(path, found, labels)
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def covered(picture: np.ndarray, colour: int) -> tuple[int, int]:
    """Returns how many rows and columns contain a grey pixel of a value."""
    found = (picture == colour).all(2)
    return int(found.any(1).sum()), int(found.any(0).sum())


@pytest.mark.parametrize(
    ("height", "width", "factor", "stacked"),
    [(60, 60, 4, False), (300, 200, 1, False), (200, 1000, 1, True), (1000, 30, 1, False), (1, 1, 256, False)],
)
def test_panels_have_their_size_beside_or_below_each_other(
    tmp_path: Path, height: int, width: int, factor: int, stacked: bool
) -> None:
    picture = look(tmp_path / "q.png", height, width)
    size = height * factor, width * factor
    assert covered(picture, 40) == size
    # "After" is unmarked; in the change panel only the half that is not changed has the colour.
    rows, columns = covered(picture, 100)
    if width > 1:
        half = (width // 2) * factor
        assert (rows, columns) == ((2 * size[0], size[1]) if stacked else (size[0], size[1] + half))
    assert picture.shape[1 if stacked else 0] < max(size[1 if stacked else 0], 300) * 1.5 + 150


def test_change_is_an_outline_and_a_fill_through_which_the_image_shows() -> None:
    random = np.random.default_rng(0).integers(0, 200, (20, 30, 3)).astype(np.uint8)
    changed = np.zeros((20, 30), bool)
    changed[5:15, 10:20] = True
    shown = marked(random, changed)
    assert (shown[~changed] == random[~changed]).all()
    assert (shown[5, 10:20] == CHANGE_RED).all() and (shown[5:15, 19] == CHANGE_RED).all()
    inside = shown[6:14, 11:19], random[6:14, 11:19]
    assert (inside[0] != CHANGE_RED).any(2).all()
    assert np.corrcoef(*(part[..., 1].ravel() for part in inside))[0, 1] > 0.99
    assert outline_of(changed).sum() == 36 and outline_of(changed, 2).sum() == 64
    assert outline_of(np.ones((3, 3), bool)).sum() == 8  # closed at the edges of the picture


def test_missing_data_is_hatched_and_explained(tmp_path: Path) -> None:
    image, valid = np.zeros((40, 40, 3), np.uint8), np.ones((40, 40), bool)
    valid[:20] = False
    shown = hatched(image, valid)
    assert (shown[20:] == 0).all() and len(np.unique(shown[:20])) == 2 and shown[:20].min() > 150
    without, with_nodata = (look(tmp_path / f"{valid}.png", 300, 300, valid=valid) for valid in (True, False))
    legend = slice(-45, None)
    assert (with_nodata[legend] != 255).sum() > (without[legend] != 255).sum()


def test_long_and_hostile_names_stay_in_their_panel(tmp_path: Path) -> None:
    plain = look(tmp_path / "a.png", 300, 300)
    names = ("x" * 400 + ".tif", "line\nend\u202e" * 30)
    found = look(tmp_path / "b.png", 300, 300, replace(LABELS, names=names))
    assert found.shape == plain.shape
    gap = slice(16 + 300 + 1, 16 + 300 + 19)
    assert (found[:, gap] == 255).all()


@pytest.mark.parametrize(
    ("metres", "most", "pixels", "text"),
    [(0.5, 240, 200, "100 m"), (10, 240, 200, "2 km"), (0.1, 105, 100, "10 m"), (0.001, 240, 200, "20 cm"),
     (1, 1000, 1000, "1 km"), (30, 99, 200 / 3, "2 km")],
)  # fmt: skip
def test_scale_bar_has_a_round_length(metres: float, most: float, pixels: float, text: str) -> None:
    bar = scale_bar(metres, most)
    assert bar.pixels == pytest.approx(pixels) and bar.text == text


def test_scale_and_north_are_drawn_only_if_known(tmp_path: Path) -> None:
    known, unknown = look(tmp_path / "a.png", 300, 300), look(tmp_path / "b.png", 300, 300, replace(LABELS, steps=None))
    assert known.shape == unknown.shape
    right = slice(-45, None), slice(-200, None)
    assert (known[right] != 255).any() and (unknown[right] == 255).all()


@pytest.mark.parametrize(
    ("steps", "north"),
    [
        (((1, 0), (0, -1)), (0, -1)),  # north up
        (((1, 0), (0, 1)), (0, 1)),  # south up
        (((0, 1), (1, 0)), (1, 0)),  # columns run to the north
        (((0.6, 0.8), (0.8, -0.6)), (0.8, -0.6)),  # rotated
        (((2, 0), (0, -1)), (0, -1)),  # pixels that are not square, as in degrees
    ],
)
def test_north_of_rotated_and_mirrored_grids(
    steps: tuple[tuple[float, float], tuple[float, float]], north: tuple[float, float]
) -> None:
    assert north_of(steps) == pytest.approx(north)
