"""From a scene's pixels to the map on disk: what the three stages of the pipeline hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.callables import Predict, Progress
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.images import Mask, RgbImage
from misgnet_runtime.scenes.journal import Journal
from misgnet_runtime.scenes.pipeline import run_pipeline
from misgnet_runtime.scenes.scaling import Scaling
from misgnet_runtime.scenes.source import Hole, Pair
from misgnet_runtime.scenes.windows import Blender, Layout
from misgnet_runtime.tiling import Span, reflect


@dataclass(frozen=True)
class Chunk:
    """Neighbouring tiles of one row, uint8 (B, T, T, 3) of both dates, read at once.

    ``tiles``: the columns of those that have data, B of them; ``columns``: what the chunk covers of the scene;
    ``valid``: where there is data, bool (h, w); ``last``: the chunk ends its row.
    """

    tiles: tuple[int, ...]
    before: RgbImage
    after: RgbImage
    columns: Span
    valid: Mask
    holes: frozenset[Hole]
    last: bool


@dataclass(frozen=True)
class Task:
    """How a scene is run; ``open_pair`` opens it anew, for the thread that reads."""

    open_pair: Callable[[], AbstractContextManager[Pair]]
    scalings: tuple[Scaling, Scaling]
    layout: Layout
    batch: int


def infer(task: Task, predict: Predict, journal: Journal, progress: Progress | None = None) -> None:
    """Compute the rows that ``journal`` lacks; ``progress`` is told of rows of tiles.

    Raises GateFailed where the engine answers NaN or Inf, InputError where the disk refuses. What is finished stays.
    """
    rows = task.layout.rows
    if journal.finished == rows.length:
        return
    first = rows.first_reaching(journal.finished)
    writer = _Writer(task.layout, first, journal, progress)
    run_pipeline(lambda: _chunks(task, first), lambda chunk: _answer(chunk, predict), writer.take)


def _chunks(task: Task, first: int) -> Generator[Chunk, None, None]:
    count = len(task.layout.columns.starts)
    with task.open_pair() as pair:
        for row in range(first, len(task.layout.rows.starts)):
            for begin in range(0, count, task.batch):
                yield _read_chunk(pair, task, row, range(begin, min(begin + task.batch, count)))


def _read_chunk(pair: Pair, task: Task, row: int, tiles: range) -> Chunk:
    axis = task.layout.columns
    rows = task.layout.rows.window(row)
    columns = Span(axis.window(tiles[0]).start, axis.window(tiles[-1]).stop)
    pixels = pair.read(task.scalings, rows, columns)
    parts = {tile: axis.window(tile).within(columns) for tile in tiles}
    seen = tuple(tile for tile, part in parts.items() if pixels.valid[:, part].any())
    before, after = (_stack(image, [parts[t] for t in seen], axis.tile) for image in (pixels.before, pixels.after))
    last = tiles[-1] == len(axis.starts) - 1
    return Chunk(seen, before, after, columns, pixels.valid, pixels.holes, last)


def _stack(image: RgbImage, parts: list[slice], tile: int) -> RgbImage:
    """uint8 (B, T, T, 3); a scene smaller than a tile is reflected."""
    stacked = np.empty((len(parts), tile, tile, 3), np.uint8)
    for index, part in enumerate(parts):
        stacked[index] = reflect(image[:, part], tile, tile)
    return stacked


def _answer(chunk: Chunk, predict: Predict) -> tuple[Chunk, NDArray[np.float32]]:
    if not chunk.tiles:
        return chunk, np.empty(chunk.before.shape[:3], np.float32)
    answer = predict(chunk.before, chunk.after)
    if not np.isfinite(answer).all():
        raise GateFailed("the engine answers NaN or Inf; run misgnet-run verify")
    return chunk, answer


class _Writer:
    """Blends answers, and puts bands of rows on the disk as they are finished."""

    def __init__(self, layout: Layout, first: int, journal: Journal, progress: Progress | None) -> None:
        self._layout, self._row, self._journal, self._progress = layout, first, journal, progress
        self._blender = Blender(layout, first)
        self._valid = np.empty((layout.rows.tile, layout.columns.length), np.bool_)
        self._told = set(journal.holes)
        self._holes: set[Hole] = set()

    def take(self, answered: tuple[Chunk, NDArray[np.float32]]) -> None:
        chunk, answer = answered
        self._valid[: len(chunk.valid), chunk.columns.start : chunk.columns.stop] = chunk.valid
        self._holes |= chunk.holes
        for column, probability in zip(chunk.tiles, answer, strict=True):
            self._blender.add(column, probability)
        if chunk.last:
            self._end_row()

    def _end_row(self) -> None:
        rows, valid = self._blender.finish(), self._valid
        span = self._layout.rows.finished(self._row)
        rows[~valid[: span.length]] = np.nan
        if span.stop > self._journal.finished:  # else a row that is computed again for what reaches beyond it
            self._journal.add(rows, tuple(sorted(self._holes - self._told)))
            self._told |= self._holes
        self._row += 1
        if self._progress:
            self._progress(self._row, len(self._layout.rows.starts))
