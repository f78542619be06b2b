"""Computes the map of two dates from their features: stored ones where valid, newly encoded ones elsewhere.

Pixels without data in either date get the neutral colour in both dates (:mod:`misgnet_runtime.raster.reader`) before
the engine runs. A date's stored features were computed with its own nodata pixels only, so they are valid for a tile
only if the other date has no further nodata pixels there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.inference.split_detector import SplitDetector
from misgnet_runtime.jobs.scene.infer import MapTask, Work, fill
from misgnet_runtime.jobs.scene.strips import Reading, Strip
from misgnet_runtime.jobs.series.features import FeatureFile, names_of, valid_pixels
from misgnet_runtime.raster.reader import Raster, neutralised
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.unreadable import UnreadableBlock

Features = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Tiles:
    """B tiles of a strip, of one date."""

    stored: Features  # stored features, float32 (B, ...) each; empty if the date has none
    fresh: Sequence[int]  # indices of the F tiles to encode
    images: Image  # their pixels, (F, T, T, C)

    def features(self, encode: Callable[[Image], Features]) -> Features:
        """Returns the features of all tiles, float32 (B, ...) each."""
        if not self.fresh:
            return self.stored
        encoded = encode(self.images)
        if not self.stored:
            return encoded
        for whole, part in zip(self.stored, encoded, strict=True):
            whole[self.fresh] = part
        return self.stored


class _Pixels:
    """Strip of a date without stored features."""

    def __init__(self, raster: Raster, scaling: Scaling, strip: Strip) -> None:
        self._image, self.valid, self.unreadable = raster.image(scaling, strip.rows, strip.columns)
        self._neutral = raster.pixels.neutral

    def tiles(self, reading: Reading) -> Tiles:
        image = neutralised(self._image, reading.valid, self._neutral)
        return Tiles([], range(len(reading.tiles)), reading.strip.stack(image, reading.tiles))


class _Stored:
    """Strip of a date with stored features; its pixels are read only for tiles whose features are not valid."""

    def __init__(self, raster: Raster, scaling: Scaling, strip: Strip, stored: FeatureFile) -> None:
        self._raster, self._scaling = raster, scaling
        self._records = stored.read(strip.numbers)
        self.valid = _joined(strip, valid_pixels(self._records, stored.footer.tile))
        self.unreadable = frozenset[UnreadableBlock]((raster.date, *block) for block in stored.footer.holes)

    def tiles(self, reading: Reading) -> Tiles:
        strip = reading.strip
        other = self.valid != reading.valid
        fresh = [index for index, tile in enumerate(reading.tiles) if other[:, strip.part(tile)].any()]
        form = self._raster.pixels
        image: Image = np.empty((strip.rows.length, strip.columns.length, form.bands), form.samples)
        if fresh:
            pixels, _, _ = self._raster.image(self._scaling, strip.rows, strip.columns)
            image = neutralised(pixels, reading.valid, form.neutral)
        records = self._records[[tile - strip.tiles.start for tile in reading.tiles]]
        stored = [records[name].astype(np.float32) for name in names_of(records.dtype)]
        return Tiles(stored, fresh, strip.stack(image, [reading.tiles[index] for index in fresh]))


def _joined(strip: Strip, masks: Mask) -> Mask:
    """Returns the pixels of a strip that have data, bool (h, w), from its tiles' masks, bool (B, T, T)."""
    rows, columns = strip.rows.length, strip.columns.length
    valid = np.zeros((rows, columns), np.bool_)
    for tile, mask in zip(strip.tiles, masks, strict=True):
        valid[:, strip.part(tile)] = mask[:rows, :columns]
    return valid


def compare(task: MapTask, detector: SplitDetector, stored: tuple[FeatureFile | None, FeatureFile | None]) -> Work:
    """Computes the rows missing from the journal; see :func:`fill`. ``stored``: both dates' features, if any."""

    def predict(tiles: tuple[Tiles, Tiles]) -> NDArray[np.float32]:
        before, after = (one.features(detector.encode) for one in tiles)
        return detector.compare(before, after)

    return fill(task, lambda strip: _read(task, stored, strip), predict)


def _read(
    task: MapTask, stored: tuple[FeatureFile | None, FeatureFile | None], strip: Strip
) -> tuple[Reading, tuple[Tiles, Tiles]]:
    before = _view(task.pair.before, task.scalings[0], strip, stored[0])
    after = _view(task.pair.after, task.scalings[1], strip, stored[1])
    task.tally.add(before.unreadable | after.unreadable)
    reading = Reading(strip, before.valid & after.valid, before.unreadable | after.unreadable)
    return reading, (before.tiles(reading), after.tiles(reading))


def _view(raster: Raster, scaling: Scaling, strip: Strip, stored: FeatureFile | None) -> _Pixels | _Stored:
    return _Pixels(raster, scaling, strip) if stored is None else _Stored(raster, scaling, strip, stored)
