"""Evaluates the PyTorch network on tiles: probabilities, masks, the confusion matrix and the worst tiles."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from misgnet.network import MISGNet
from misgnet.tensors import normalise, unit_range
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.callables import Mask, Progress
from misgnet_runtime.inference.tiled import check_pair
from misgnet_runtime.raster.dataset import Tile, TileSet, stack
from misgnet_runtime.raster.tiling import cover, cut


@dataclass(frozen=True)
class EvaluatedTile:
    """A tile with its prediction."""

    tile: Tile
    mask: Mask  # predicted change, bool (T, T)
    confusion: Confusion  # over the pixels that count for this tile

    @property
    def wrong(self) -> int:
        """Returns the number of wrong pixels."""
        return self.confusion.fp + self.confusion.fn


@torch.inference_mode()
def predict_probability(network: MISGNet, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the probability of change, float32 (B, H, W), for both dates, uint8 (B, H, W, 3)."""
    device = next(network.parameters()).device
    inputs = (normalise(unit_range(x).to(device)) for x in (before, after))
    return network(*inputs).softmax(1)[:, 1].cpu().numpy()


def predict_tiles(
    network: MISGNet, tiles: TileSet, batch: int = 4, progress: Progress | None = None
) -> Iterator[tuple[Tile, NDArray[np.float32]]]:
    """Yields each tile with its probability of change, float32 (T, T)."""
    done = 0
    for part in tiles.batches(batch):
        yield from zip(part, predict_probability(network, *stack(part)), strict=True)
        done += len(part)
        if progress:
            progress(done, len(tiles))


def predict_pair(
    network: MISGNet, before: NDArray[np.uint8], after: NDArray[np.uint8], tile: int, batch: int = 4
) -> NDArray[np.float32]:
    """Returns the probability of change, float32 (H, W), for a pair of any size, uint8 (H, W, 3).

    Each pixel comes from one tile, as in :func:`evaluate_tiles`; tiles are not blended.
    """
    check_pair(before, after)
    height, width = before.shape[:2]
    result = np.empty((height, width), np.float32)
    cells = cover(height, width, tile)
    for start in range(0, len(cells), batch):
        part = cells[start : start + batch]
        tiles = (np.stack([cut(image, cell) for cell in part]) for image in (before, after))
        for cell, probability in zip(part, predict_probability(network, *tiles), strict=True):
            result[cell.owned_in_image()] = probability[cell.owned_in_tile()]
    return result


def evaluate_tiles(
    network: MISGNet, tiles: TileSet, batch: int = 4, threshold: float = 0.5, progress: Progress | None = None
) -> Iterator[EvaluatedTile]:
    """Yields each tile with its mask and counts; every pixel counts for exactly one tile, padding for none."""
    for tile, probability in predict_tiles(network, tiles, batch, progress):
        mask = probability > threshold
        yield EvaluatedTile(tile, mask, Confusion.of(mask[tile.owned], tile.label[tile.owned]))


def evaluate(network: MISGNet, tiles: TileSet, batch: int = 4, progress: Progress | None = None) -> Confusion:
    """Returns one confusion matrix over all pixels."""
    return Confusion.total(
        [evaluated.confusion for evaluated in evaluate_tiles(network, tiles, batch, progress=progress)]
    )


def evaluate_with_worst(
    network: MISGNet,
    tiles: TileSet,
    worst: int,
    *,
    batch: int = 4,
    threshold: float = 0.5,
    progress: Progress | None = None,
) -> tuple[Confusion, list[EvaluatedTile]]:
    """Returns the confusion matrix of :func:`evaluate` and the ``worst`` tiles with the most wrong pixels.

    The list is sorted from the worst tile down and omits tiles without errors. Only these tiles are kept in memory.
    """
    total = Confusion()
    kept: list[
        tuple[int, int, EvaluatedTile]
    ] = []  # a heap, smallest first; of tiles with equal errors, the earlier stays
    for number, evaluated in enumerate(evaluate_tiles(network, tiles, batch, threshold, progress)):
        total += evaluated.confusion
        heapq.heappush(kept, (evaluated.wrong, -number, evaluated))
        if len(kept) > worst:
            heapq.heappop(kept)
    return total, [evaluated for wrong, _, evaluated in sorted(kept, reverse=True, key=lambda k: k[:2]) if wrong]
