"""Computes a scene's map from its pixels: the work of the pipeline's three stages (read, infer, write)."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.accuracy.metrics import require_finite
from misgnet_runtime.callables import Image, Predict, Progress
from misgnet_runtime.jobs.journal import Journal
from misgnet_runtime.jobs.scene.pipeline import run_pipeline
from misgnet_runtime.jobs.scene.strips import Reading, Strip, strips
from misgnet_runtime.raster.area.region import Region
from misgnet_runtime.raster.blending import Blender, Layout
from misgnet_runtime.raster.reader import Pair
from misgnet_runtime.raster.scaling import Scaling
from misgnet_runtime.raster.unreadable import Tally, UnreadableBlock

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class MapTask:
    """A map to compute."""

    pair: Pair  # both dates, open; the reading thread enters its ``in_thread``
    scalings: tuple[Scaling, Scaling]
    layout: Layout
    batch: int  # tiles per inference call
    streams: int  # batches in flight at once
    tally: Tally  # counts unreadable blocks
    journal: Journal  # holds the finished rows and receives new ones
    region: Region | None = None  # what is computed; the rest is nodata, and not read. None: everything
    progress: Progress | None = None  # called with the finished rows of tiles and their total


@dataclass(frozen=True)
class Work:
    """Amount of work done in this run."""

    tiles: int  # tiles that were inferred
    seconds: float  # from the first pixel read to the last row on disk


def infer(task: MapTask, predict: Predict) -> Work:
    """Computes the rows missing from the journal from the pixels of both dates; see :func:`fill`."""
    return fill(task, lambda strip: _pixels(task, strip), lambda images: predict(*images))


def fill(
    task: MapTask, read: Callable[[Strip], tuple[Reading, Item]], predict: Callable[[Item], NDArray[np.float32]]
) -> Work:
    """Computes the rows missing from the journal, several batches at once. If it fails, finished rows stay.

    Args:
        task: The map to compute.
        read: Reads a strip; called in order, in a separate thread.
        predict: Returns probabilities, float32 (B, T, T), of the strip's tiles that have data.

    Raises:
        GateFailed: A probability is NaN or Inf.
        UnreadableError: More blocks are unreadable than allowed.
        InputError: The journal cannot be written.
    """
    rows, finished = task.layout.rows, task.journal.finished
    if finished == rows.length:
        return Work(0, 0.0)
    first = rows.first_reaching(finished)
    writer = _Writer(task, first)

    def pixels() -> Generator[tuple[Reading, Item], None, None]:
        with task.pair.in_thread():
            for strip in strips(task.layout, task.batch, first, task.region):
                yield read(strip)

    def work(item: tuple[Reading, Item]) -> tuple[Reading, NDArray[np.float32]]:
        reading, images = item
        if not reading.tiles:
            return reading, np.empty((0, 0, 0), np.float32)
        return reading, require_finite(predict(images), "the engine")

    begin = time.perf_counter()
    run_pipeline(pixels, work, writer.take, task.streams)
    writer.end()
    return Work(writer.tiles, time.perf_counter() - begin)


def _pixels(task: MapTask, strip: Strip) -> tuple[Reading, tuple[Image, Image]]:
    """Reads a strip; also returns its tiles that have data, (B, T, T, C) of both dates."""
    pixels = task.pair.read(task.scalings, strip.rows, strip.columns, borrow=task.pair.moved)
    task.tally.add(pixels.unreadable)
    reading = Reading(strip, pixels.valid, pixels.unreadable)
    return reading, (strip.stack(pixels.before, reading.tiles), strip.stack(pixels.after, reading.tiles))


class _Writer:
    """Blends predictions and writes bands of finished rows to the journal."""

    def __init__(self, task: MapTask, first: int) -> None:
        self._row, self._journal, self._progress = first, task.journal, task.progress
        self._layout, self._region = task.layout, task.region
        rows, columns = task.layout.rows, task.layout.columns
        self._blender = Blender(task.layout, first)
        self._valid = np.zeros((min(rows.tile, rows.length), columns.length), np.bool_)
        self._computed = False  # whether the current row has tiles
        self._recorded = set(task.journal.unreadable)
        self._unreadable: set[UnreadableBlock] = set()
        self.tiles = 0

    def take(self, predicted: tuple[Reading, NDArray[np.float32]]) -> None:
        reading, probabilities = predicted
        columns = reading.strip.columns
        self._end_rows(reading.strip.row)
        self._computed = True
        self._valid[: len(reading.valid), columns.start : columns.stop] = reading.valid
        self._unreadable |= reading.unreadable
        self.tiles += len(reading.tiles)
        for column, probability in zip(reading.tiles, probabilities, strict=True):
            self._blender.add(column, probability)
        if reading.strip.last:
            self._end_row()

    def end(self) -> None:
        """Ends the rows of tiles below the last strip."""
        self._end_rows(len(self._layout.rows.starts))

    def _end_rows(self, until: int) -> None:
        while self._row < until:
            self._end_row()

    def _end_row(self) -> None:
        span = self._layout.rows.finished(self._row)
        valid = self._valid[: span.length]
        if self._computed and self._region is not None:
            valid = self._region.clip(valid, span)
        with self._blender.finish() as rows:
            rows[~valid] = np.nan
            if span.stop > self._journal.finished:  # else recomputed only because its tiles overlap the next rows
                self._journal.add([rows], tuple(sorted(self._unreadable - self._recorded)))
                self._recorded |= self._unreadable
        self._row += 1
        self._valid[:], self._computed = False, False
        if self._progress:
            self._progress(self._row, len(self._layout.rows.starts))
