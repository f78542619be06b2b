"""From a scene's pixels to the map on disk: what the three stages of the pipeline hand to each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

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
class Strip:
    """Neighbouring tiles of one row, read at once.

    ``tiles``: the columns of those that have data, B of them; ``columns``: what the strip covers of the scene;
    ``valid``: where there is data, bool (h, w); ``last``: the strip ends its row.
    """

    tiles: tuple[int, ...]
    columns: Span
    valid: Mask
    holes: frozenset[Hole]
    last: bool


@dataclass(frozen=True)
class Chunk(Strip):
    """A strip's pixels, uint8 (B, T, T, 3) of both dates."""

    before: RgbImage
    after: RgbImage


AnyStrip = TypeVar("AnyStrip", bound=Strip)


@dataclass(frozen=True)
class Task:
    """How a scene is run; ``open_pair`` opens it anew, for the thread that reads. ``streams``: batches at once."""

    open_pair: Callable[[], AbstractContextManager[Pair]]
    scalings: tuple[Scaling, Scaling]
    layout: Layout
    batch: int
    streams: int = 1


@dataclass(frozen=True)
class Work:
    """Tiles that the engine was given, and the seconds from the first pixel read to the last row on the disk."""

    tiles: int
    seconds: float


def infer(task: Task, predict: Predict, journal: Journal, progress: Progress | None = None) -> Work:
    """Compute the rows that ``journal`` lacks, as :func:`fill`."""
    return fill(
        journal, task.layout, lambda first: _chunks(task, first),
        lambda chunk: predict(chunk.before, chunk.after), progress, task.streams,
    )  # fmt: skip


def fill(
    journal: Journal,
    layout: Layout,
    read: Callable[[int], Generator[AnyStrip, None, None]],
    answer: Callable[[AnyStrip], NDArray[np.float32]],
    progress: Progress | None,
    streams: int = 1,
) -> Work:
    """Compute the rows that ``journal`` lacks, ``streams`` batches at once; ``progress`` is told of rows of tiles.

    ``read`` yields strips from a row of tiles on; ``answer`` gives the probabilities of one that has data, float32
    (B, T, T). Raises GateFailed where these are NaN or Inf, InputError where the disk refuses. What is finished stays.
    """
    if journal.finished == layout.rows.length:
        return Work(0, 0.0)
    first = layout.rows.first_reaching(journal.finished)
    writer = _Writer(layout, first, journal, progress)

    def work(strip: AnyStrip) -> tuple[Strip, NDArray[np.float32]]:
        return strip, checked(answer(strip)) if strip.tiles else np.empty((0, 0, 0), np.float32)

    begin = time.perf_counter()
    run_pipeline(lambda: read(first), work, writer.take, streams)
    return Work(writer.tiles, time.perf_counter() - begin)


def _chunks(task: Task, first: int) -> Generator[Chunk, None, None]:
    with task.open_pair() as pair:
        for row, tiles in task.layout.strips(task.batch, first):
            yield _read_chunk(pair, task, row, tiles)


def _read_chunk(pair: Pair, task: Task, row: int, tiles: range) -> Chunk:
    axis = task.layout.columns
    rows, columns = task.layout.rows.window(row), axis.windows(tiles)
    pixels = pair.read(task.scalings, rows, columns)
    parts = {tile: axis.window(tile).within(columns) for tile in tiles}
    seen = tuple(tile for tile, part in parts.items() if pixels.valid[:, part].any())
    before, after = (stack_tiles(image, [parts[t] for t in seen], axis.tile) for image in (pixels.before, pixels.after))
    last = tiles[-1] == len(axis.starts) - 1
    return Chunk(seen, columns, pixels.valid, pixels.holes, last, before, after)


def stack_tiles(image: RgbImage, parts: list[slice], tile: int) -> RgbImage:
    """uint8 (B, T, T, 3); a scene smaller than a tile is reflected."""
    stacked = np.empty((len(parts), tile, tile, 3), np.uint8)
    for index, part in enumerate(parts):
        stacked[index] = reflect(image[:, part], tile, tile)
    return stacked


def checked(answer: NDArray[np.float32]) -> NDArray[np.float32]:
    """What an engine answers; GateFailed where that is not finite."""
    if not np.isfinite(answer).all():
        raise GateFailed("the engine answers NaN or Inf; run misgnet-run verify")
    return answer


class _Writer:
    """Blends answers, and puts bands of rows on the disk as they are finished."""

    def __init__(self, layout: Layout, first: int, journal: Journal, progress: Progress | None) -> None:
        self._layout, self._row, self._journal, self._progress = layout, first, journal, progress
        self._blender = Blender(layout, first)
        self._valid = np.empty((layout.rows.tile, layout.columns.length), np.bool_)
        self._told = set(journal.holes)
        self._holes: set[Hole] = set()
        self.tiles = 0

    def take(self, answered: tuple[Strip, NDArray[np.float32]]) -> None:
        strip, answer = answered
        self._valid[: len(strip.valid), strip.columns.start : strip.columns.stop] = strip.valid
        self._holes |= strip.holes
        self.tiles += len(strip.tiles)
        for column, probability in zip(strip.tiles, answer, strict=True):
            self._blender.add(column, probability)
        if strip.last:
            self._end_row()

    def _end_row(self) -> None:
        rows, valid = self._blender.finish(), self._valid
        span = self._layout.rows.finished(self._row)
        rows[~valid[: span.length]] = np.nan
        if span.stop > self._journal.finished:  # else a row that is computed again for what reaches beyond it
            self._journal.add([rows], tuple(sorted(self._holes - self._told)))
            self._told |= self._holes
        self._row += 1
        if self._progress:
            self._progress(self._row, len(self._layout.rows.starts))
