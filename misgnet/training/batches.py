"""Reads batches of augmented tile pairs; the pixels of an epoch depend only on the seed.

The random numbers for a tile depend only on the seed, the epoch and the tile, not on previous batches, threads or
processes. A resumed run and a run on several processes therefore see the same pixels.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch

from misgnet.tensors import tile_tensors
from misgnet.training.augmentation import Pair, augment
from misgnet.training.recipe import Recipe
from misgnet_runtime.callables import Image, Mask
from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.dataset import Source, Tile, TileRef, TileSet, load_source
from misgnet_runtime.raster.tiling import cut

_AHEAD = 2  # batches read in advance
_ORDER, _SAMPLE = 0, 1  # identifiers of random-number streams
Images = tuple[Image, Image, Mask]


def epoch_batches(seed: int, epoch: int, tiles: int, batch: int) -> list[list[int]]:
    """Returns shuffled tile numbers (0 to ``tiles`` - 1) in batches; an incomplete last batch is dropped."""
    order = np.random.default_rng([seed, _ORDER, epoch]).permutation(tiles).tolist()
    batch = min(batch, tiles)
    return [order[start : start + batch] for start in range(0, tiles - batch + 1, batch)]


@dataclass(frozen=True)
class _Version:
    """Identifies a version of a file, to detect changes."""

    modified: int  # modification time, nanoseconds
    size: int  # bytes


class SourceCache:
    """A thread-safe cache of decoded image pairs, which drops the least recently used ones above ``limit`` bytes.

    Files that changed since they were cached are read again. ``load`` decodes a pair.
    """

    def __init__(self, limit: int, *, load: Callable[[Source], Images] = load_source) -> None:
        self.limit, self._load = limit, load
        self._images: OrderedDict[Source, tuple[tuple[_Version, ...], Images]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def tile(self, ref: TileRef) -> Tile:
        """Returns the pixels of a tile; raises InputError with the name of a file that cannot be read."""
        before, after, label = self._source(ref.source)
        return Tile(ref, cut(before, ref.cell), cut(after, ref.cell), cut(label, ref.cell))

    def _source(self, source: Source) -> Images:
        version = _versions(source)
        with self._lock:
            known = self._images.get(source)
            if known and known[0] == version:
                self._images.move_to_end(source)
                return known[1]
        images = self._load(source)
        with self._lock:
            self._drop(source)
            self._images[source] = (version, images)
            self._bytes += _size(images)
            while self._bytes > self.limit:
                self._drop(next(iter(self._images)))
        return images

    def _drop(self, source: Source) -> None:
        if source in self._images:
            self._bytes -= _size(self._images.pop(source)[1])


class BatchReader:
    """Reads, crops and augments batches in advance in ``workers`` threads; use it in a ``with`` block."""

    def __init__(self, tiles: TileSet, recipe: Recipe, cache: SourceCache, workers: int = 2) -> None:
        self.tiles, self.recipe, self.cache = tiles, recipe, cache
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="tiles")

    def epoch(self, number: int, batches: Sequence[Sequence[int]], share: Callable[[int], float]) -> Iterator[Pair]:
        """Yields the batches of one epoch: both dates float32 (B, 3, T, T) in [0, 1], labels bool (B, T, T).

        Args:
            number: Number of the epoch, from 0.
            batches: Tile numbers of each batch.
            share: Returns the share of the run (0 to 1) that is done before the n-th of ``batches``.
        """
        pending: deque[list[Future[Pair]]] = deque()
        for n, batch in enumerate(batches):
            now = share(n)  # the same for the whole batch, so that all its crops have one size
            pending.append([self._threads.submit(self._sample, number, index, now) for index in batch])
            if len(pending) > _AHEAD:
                yield _joined(pending.popleft())
        while pending:
            yield _joined(pending.popleft())

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _sample(self, epoch: int, index: int, share: float) -> Pair:
        seeds = np.random.SeedSequence([self.recipe.seed, _SAMPLE, epoch, index]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seeds[0] >> np.uint64(1)))
        before, after, label = tile_tensors([self.cache.tile(self.tiles[index])])
        pair = self._crop((before[0], after[0], label[0]), generator, share)
        return augment(pair, self.recipe.augmentation, generator, share)

    def _crop(self, pair: Pair, generator: torch.Generator, share: float) -> Pair:
        size = self.recipe.crop
        if size is None or share > self.recipe.crop_share:
            return pair
        top, left = torch.randint(self.tiles.tile - size + 1, (2,), generator=generator).tolist()
        before, after, label = (x[..., top : top + size, left : left + size] for x in pair)
        return before, after, label


def _joined(samples: list[Future[Pair]]) -> Pair:
    before, after, label = zip(*(sample.result() for sample in samples), strict=True)
    return torch.stack(before), torch.stack(after), torch.stack(label)


def _versions(source: Source) -> tuple[_Version, ...]:
    paths = [path for path in (source.before, source.after, source.label) if path is not None]
    try:
        return tuple(_Version(status.st_mtime_ns, status.st_size) for status in (path.stat() for path in paths))
    except OSError as error:
        raise InputError(f"image {error.filename} can no longer be read: {error.strerror}") from error


def _size(images: Images) -> int:
    return sum(image.nbytes for image in images)
