"""Measures maps of whole validation images: how F1 and seams depend on the overlap of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.bundle import MeasuredOverlap
from misgnet_runtime.callables import Image, Mask, Progress
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.raster.blending import lay_out
from misgnet_runtime.raster.dataset import Source, TileSet, read_source

# Rows and columns that are cut off to shift the tiles. No stride between tiles is a divisor of either.
SHIFT = (37, 91)
_SIDE = 1024  # pixels; of a larger image, the middle is used
_PIXELS = 4 * _SIDE**2  # of all images together


@dataclass(frozen=True)
class Scene:
    """A validation image pair, or the middle of one."""

    before: Image  # uint8 (H, W, 3)
    after: Image  # uint8 (H, W, 3)
    label: Mask  # bool (H, W)

    @property
    def pixels(self) -> int:
        return self.label.size

    def cut(self, rows: int, columns: int) -> Scene:
        """Returns the scene without its first rows and columns."""
        part = slice(rows, None), slice(columns, None)
        return Scene(self.before[part], self.after[part], self.label[part])


def overlaps_of(tile: int) -> tuple[int, ...]:
    """Returns the overlaps that are measured: 0, 1/16, 1/8, 1/4 and 1/2 of a tile, in pixels."""
    return (0, tile // 16, tile // 8, tile // 4, tile // 2)


def times_computed(tile: int, overlap: int) -> float:
    """Returns how often each pixel of a large scene is computed."""
    return (tile / (tile - overlap)) ** 2


def smallest_size(tile: int) -> tuple[int, int]:
    """Returns the smallest height and width of an image that stays as large as a tile when it is cut by ``SHIFT``."""
    return tile + SHIFT[0], tile + SHIFT[1]


def scenes_of(tiles: TileSet, tile: int) -> list[Scene]:
    """Reads images of a set that are larger than a tile, evenly spread over the set, up to a limit of pixels."""
    height, width = smallest_size(tile)
    large = [source for source in tiles.sources if source.size()[0] >= height and source.size()[1] >= width]
    if not large:
        return []
    side = max(_SIDE, 2 * tile)
    most = max(min(side, source.size()[0]) * min(side, source.size()[1]) for source in large)
    count = min(len(large), max(1, _PIXELS // most))
    return [_middle(large[index * len(large) // count], side) for index in range(count)]


def _middle(source: Source, side: int) -> Scene:
    rows, columns = (slice(start := max(0, (size - side) // 2), start + side) for size in source.size())
    before, after, label = read_source(source)
    return Scene(before[rows, columns], after[rows, columns], label[rows, columns])


def tiles_in(scenes: Sequence[Scene], tile: int, overlap: int) -> int:
    """Returns the number of tiles of all scenes, whole and cut."""
    labels = [part.label for scene in scenes for part in (scene, scene.cut(*SHIFT))]
    layouts = [lay_out(height, width, tile, overlap) for height, width in (label.shape for label in labels)]
    return sum(len(layout.rows.starts) * len(layout.columns.starts) for layout in layouts)


def measure_overlaps(
    detector: ChangeDetector, scenes: Sequence[Scene], threshold: float,
    *, overlaps: Sequence[int], batch: int, progress: Progress,
) -> list[MeasuredOverlap]:  # fmt: skip
    """Returns F1 and seam agreement of the scenes' maps at each of ``overlaps``.

    Each scene is mapped twice, whole and cut by ``SHIFT``. F1 is that of all pixels of both maps: where tiles happen to
    start moves F1 of a few scenes by as much as the overlap does.

    Args:
        detector: An open engine; each of its streams computes one scene at a time.
        scenes: The scenes, at least as large as :func:`smallest_size`.
        threshold: Probability above which a pixel counts as changed.
        overlaps: Pixels that neighbouring tiles share, ascending.
        batch: Tiles per inference call.
        progress: Called with the number of finished maps and their total.

    Raises:
        GateFailed: A probability is NaN or Inf.
    """
    tile = detector.interface.tile
    parts = [part for scene in scenes for part in (scene, scene.cut(*SHIFT))]
    found: list[MeasuredOverlap] = []
    with ThreadPoolExecutor(detector.engine.streams) as pool:
        for overlap in overlaps:

            def mask(part: Scene, overlap: int = overlap) -> Mask:
                return detector.scene_probability(part.before, part.after, overlap=overlap, batch=batch) > threshold

            masks = []
            for one in pool.map(mask, parts):
                masks.append(one)
                progress(len(found) * len(parts) + len(masks), len(overlaps) * len(parts))
            found.append(_measured(parts, masks, tile, overlap))
    return found


def _measured(parts: Sequence[Scene], masks: Sequence[Mask], tile: int, overlap: int) -> MeasuredOverlap:
    """Returns the scores of maps in pairs: of a whole scene and of the same scene cut."""
    confusion = Confusion.total([Confusion.of(mask, part.label) for mask, part in zip(masks, parts, strict=True)])
    pairs = zip(masks[::2], masks[1::2], strict=True)
    equal = sum(int(np.count_nonzero(whole[SHIFT[0] :, SHIFT[1] :] == cut)) for whole, cut in pairs)
    seam_agreement = equal / sum(cut.size for cut in masks[1::2])
    return MeasuredOverlap(overlap, times_computed(tile, overlap), confusion.f1, seam_agreement)
