"""From a scene's pixels to the map on disk: what the three stages of the pipeline hand to each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.accuracy.metrics import require_finite
from misgnet_runtime.callables import Predict, Progress, RgbImage
from misgnet_runtime.jobs.journal import Journal
from misgnet_runtime.jobs.scene.pipeline import run_pipeline
from misgnet_runtime.jobs.scene.strips import Reading, strips
from misgnet_runtime.raster.blending import Blender, Layout
from misgnet_runtime.raster.reader import Pair
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.unreadable import Tally, UnreadableBlock

Item = TypeVar("Item")


@dataclass(frozen=True)
class Task:
    """How a scene is run; ``open_pair`` opens it anew, for the thread that reads, where ``tally`` counts what does not
    decode. ``streams``: batches at once.
    """

    open_pair: Callable[[], AbstractContextManager[Pair]]
    scalings: tuple[Scaling, Scaling]
    layout: Layout
    batch: int
    tally: Tally
    streams: int = 1


@dataclass(frozen=True)
class Work:
    """Tiles that the engine was given, and the seconds from the first pixel read to the last row on the disk."""

    tiles: int
    seconds: float


def infer(task: Task, predict: Predict, journal: Journal, progress: Progress | None = None) -> Work:
    """Compute the rows that ``journal`` lacks, as :func:`fill`."""
    return fill(
        journal, task.layout, lambda first: _read(task, first), lambda images: predict(*images), progress, task.streams
    )


def fill(
    journal: Journal,
    layout: Layout,
    read: Callable[[int], Generator[tuple[Reading, Item], None, None]],
    answer: Callable[[Item], NDArray[np.float32]],
    progress: Progress | None,
    streams: int = 1,
) -> Work:
    """Compute the rows that ``journal`` lacks, ``streams`` batches at once; ``progress`` is told of rows of tiles.

    ``read`` yields strips from a row of tiles on; ``answer`` makes probabilities, float32 (B, T, T), of those tiles
    that have data. Raises GateFailed where these are NaN or Inf, InputError where the disk refuses. What is finished
    stays.
    """
    if journal.finished == layout.rows.length:
        return Work(0, 0.0)
    first = layout.rows.first_reaching(journal.finished)
    writer = _Writer(layout, first, journal, progress)

    def work(item: tuple[Reading, Item]) -> tuple[Reading, NDArray[np.float32]]:
        reading, images = item
        if not reading.tiles:
            return reading, np.empty((0, 0, 0), np.float32)
        return reading, require_finite(answer(images), "the engine")

    begin = time.perf_counter()
    run_pipeline(lambda: read(first), work, writer.take, streams)
    return Work(writer.tiles, time.perf_counter() - begin)


def _read(task: Task, first: int) -> Generator[tuple[Reading, tuple[RgbImage, RgbImage]], None, None]:
    """Strips, each with its tiles that have data, uint8 (B, T, T, 3) of both dates."""
    with task.open_pair() as pair:
        for strip in strips(task.layout, task.batch, first):
            pixels = pair.read(task.scalings, strip.rows, strip.columns)
            task.tally.add(pixels.holes)
            reading = Reading(strip, pixels.valid, pixels.holes)
            yield reading, (strip.stack(pixels.before, reading.tiles), strip.stack(pixels.after, reading.tiles))


class _Writer:
    """Blends answers, and puts bands of rows on the disk as they are finished."""

    def __init__(self, layout: Layout, first: int, journal: Journal, progress: Progress | None) -> None:
        self._layout, self._row, self._journal, self._progress = layout, first, journal, progress
        self._blender = Blender(layout, first)
        self._valid = np.empty((min(layout.rows.tile, layout.rows.length), layout.columns.length), np.bool_)
        self._told = set(journal.holes)
        self._holes: set[UnreadableBlock] = set()
        self.tiles = 0

    def take(self, answered: tuple[Reading, NDArray[np.float32]]) -> None:
        reading, answer = answered
        columns = reading.strip.columns
        self._valid[: len(reading.valid), columns.start : columns.stop] = reading.valid
        self._holes |= reading.holes
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
                self._journal.add([rows], tuple(sorted(self._holes - self._told)))
                self._told |= self._holes
        self._row += 1
        if self._progress:
            self._progress(self._row, len(self._layout.rows.starts))
