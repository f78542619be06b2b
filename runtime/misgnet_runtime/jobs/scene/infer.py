"""From a scene's pixels to the map on disk: what the three stages of the pipeline hand to each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.accuracy.metrics import require_finite
from misgnet_runtime.callables import Predict, Progress, RgbImage
from misgnet_runtime.jobs.journal import Journal
from misgnet_runtime.jobs.scene.pipeline import run_pipeline
from misgnet_runtime.jobs.scene.strips import Reading, Strip, strips
from misgnet_runtime.raster.blending import Blender, Layout
from misgnet_runtime.raster.reader import Pair
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.unreadable import Tally, UnreadableBlock

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class MapTask:
    """A map that is to be computed: of which pixels, in which tiles, and where it is kept.

    Attributes:
        pair: Both dates, open; the thread that reads does so within its ``in_thread``.
        batch: Tiles per inference call.
        streams: Batches at once.
        tally: Counts blocks that do not decode.
        journal: What is computed already, and where more is added.
        progress: Gets rows of tiles as they are finished, and how many there are.
    """

    pair: Pair
    scalings: tuple[Scaling, Scaling]
    layout: Layout
    batch: int
    streams: int
    tally: Tally
    journal: Journal
    progress: Progress | None = None


@dataclass(frozen=True)
class Work:
    """Tiles that the engine was given, and the seconds from the first pixel read to the last row on the disk."""

    tiles: int
    seconds: float


def infer(task: MapTask, predict: Predict) -> Work:
    """Compute the rows that the journal lacks from the pixels of both dates, as :func:`fill`."""
    return fill(task, lambda strip: _pixels(task, strip), lambda images: predict(*images))


def fill(
    task: MapTask, read: Callable[[Strip], tuple[Reading, Item]], answer: Callable[[Item], NDArray[np.float32]]
) -> Work:
    """Compute the rows that the journal lacks, several batches at once. What is finished stays.

    Args:
        task: Which map.
        read: Reads a strip; strips come in order, in a thread of their own.
        answer: Computes probabilities, float32 (B, T, T), of those tiles of a strip that have data.

    Raises:
        GateFailed: A probability is NaN or Inf.
        UnreadableError: More blocks do not decode than are allowed.
        InputError: The disk refuses.
    """
    rows, finished = task.layout.rows, task.journal.finished
    if finished == rows.length:
        return Work(0, 0.0)
    first = rows.first_reaching(finished)
    writer = _Writer(task, first)

    def pixels() -> Generator[tuple[Reading, Item], None, None]:
        with task.pair.in_thread():
            for strip in strips(task.layout, task.batch, first):
                yield read(strip)

    def work(item: tuple[Reading, Item]) -> tuple[Reading, NDArray[np.float32]]:
        reading, images = item
        if not reading.tiles:
            return reading, np.empty((0, 0, 0), np.float32)
        return reading, require_finite(answer(images), "the engine")

    begin = time.perf_counter()
    run_pipeline(pixels, work, writer.take, task.streams)
    return Work(writer.tiles, time.perf_counter() - begin)


def _pixels(task: MapTask, strip: Strip) -> tuple[Reading, tuple[RgbImage, RgbImage]]:
    """A strip, and its tiles that have data, uint8 (B, T, T, 3) of both dates."""
    pixels = task.pair.read(task.scalings, strip.rows, strip.columns)
    task.tally.add(pixels.unreadable)
    reading = Reading(strip, pixels.valid, pixels.unreadable)
    return reading, (strip.stack(pixels.before, reading.tiles), strip.stack(pixels.after, reading.tiles))


class _Writer:
    """Blends answers, and puts bands of rows on the disk as they are finished."""

    def __init__(self, task: MapTask, first: int) -> None:
        self._row, self._journal, self._progress = first, task.journal, task.progress
        self._layout = layout = task.layout
        self._blender = Blender(layout, first)
        self._valid = np.empty((min(layout.rows.tile, layout.rows.length), layout.columns.length), np.bool_)
        self._told = set(task.journal.holes)
        self._unreadable: set[UnreadableBlock] = set()
        self.tiles = 0

    def take(self, answered: tuple[Reading, NDArray[np.float32]]) -> None:
        reading, answer = answered
        columns = reading.strip.columns
        self._valid[: len(reading.valid), columns.start : columns.stop] = reading.valid
        self._unreadable |= reading.unreadable
        self.tiles += len(reading.tiles)
        for column, probability in zip(reading.tiles, answer, strict=True):
            self._blender.add(column, probability)
        if reading.strip.last:
            self._end_row()

    def _end_row(self) -> None:
        span = self._layout.rows.finished(self._row)
        with self._blender.finish() as rows:
            rows[~self._valid[: span.length]] = np.nan
            if span.stop > self._journal.finished:  # else a row that is computed again for what reaches beyond it
                self._journal.add([rows], tuple(sorted(self._unreadable - self._told)))
                self._told |= self._unreadable
        self._row += 1
        if self._progress:
            self._progress(self._row, len(self._layout.rows.starts))
