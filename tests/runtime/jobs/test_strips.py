"""Tests that a strip's tiles are cut from its pixels, however these are stored in memory."""

from __future__ import annotations

import numpy as np
import pytest

from misgnet_runtime.jobs.scene.strips import strips
from misgnet_runtime.raster.blending import lay_out


@pytest.mark.parametrize(("height", "width"), [(150, 200), (64, 64), (40, 90), (90, 40), (7, 5)])
@pytest.mark.parametrize("by_channel", [False, True])
def test_tiles_are_the_strips_pixels_reflected_at_the_edges_of_small_scenes(
    height: int, width: int, by_channel: bool
) -> None:
    scene = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    padded = np.pad(scene, [(0, max(0, 64 - height)), (0, max(0, 64 - width)), (0, 0)], mode="symmetric")
    layout = lay_out(height, width, 64, 16)
    for strip in strips(layout, 2):
        image = scene[strip.rows.start : strip.rows.stop, strip.columns.start : strip.columns.stop]
        if by_channel:
            image = np.moveaxis(np.ascontiguousarray(np.moveaxis(image, 2, 0)), 0, 2)
        found = strip.stack(image, strip.tiles)
        assert found.flags.c_contiguous and found.dtype == np.uint8
        for tile, column in zip(found, strip.tiles, strict=True):
            top, left = layout.rows.starts[strip.row], layout.columns.starts[column]
            assert np.array_equal(tile, padded[top : top + 64, left : left + 64])
