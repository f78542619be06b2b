"""The PyTorch network on tiles: probabilities, masks, one confusion matrix, and the worst tiles."""

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
from misgnet_runtime.inference.tiled import predict_scene
from misgnet_runtime.raster.dataset import Tile, TileSet, stack


@dataclass(frozen=True)
class EvaluatedTile:
    """One tile, the predicted mask bool (T, T), and its counts over the pixels that it answers for."""

    tile: Tile
    mask: Mask
    confusion: Confusion

    @property
    def wrong(self) -> int:
        return self.confusion.fp + self.confusion.fn


@torch.inference_mode()
def predict_probability(network: MISGNet, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probability of change, float32 (B, H, W), from uint8 (B, H, W, 3) of both dates."""
    device = next(network.parameters()).device
    inputs = (normalise(unit_range(x).to(device)) for x in (before, after))
    return network(*inputs).softmax(1)[:, 1].cpu().numpy()


def predict_tiles(
    network: MISGNet, tiles: TileSet, batch: int = 4, progress: Progress | None = None
) -> Iterator[tuple[Tile, NDArray[np.float32]]]:
    """Each tile with its probability of change, float32 (T, T)."""
    done = 0
    for part in tiles.batches(batch):
        yield from zip(part, predict_probability(network, *stack(part)), strict=True)
        done += len(part)
        if progress:
            progress(done, len(tiles))


def predict_pair(
    network: MISGNet, before: NDArray[np.uint8], after: NDArray[np.uint8], tile: int, batch: int = 4
) -> NDArray[np.float32]:
    """Probability of change, float32 (H, W), of a pair of any size, uint8 (H, W, 3)."""
    return predict_scene(lambda b, a: predict_probability(network, b, a), before, after, tile, batch)


def evaluate_tiles(
    network: MISGNet, tiles: TileSet, batch: int = 4, threshold: float = 0.5, progress: Progress | None = None
) -> Iterator[EvaluatedTile]:
    """Each tile with its mask and counts; a pixel counts once over all tiles, padding never."""
    for tile, probability in predict_tiles(network, tiles, batch, progress):
        mask = probability > threshold
        yield EvaluatedTile(tile, mask, Confusion.of(mask[tile.owned], tile.label[tile.owned]))


def evaluate(network: MISGNet, tiles: TileSet, batch: int = 4, progress: Progress | None = None) -> Confusion:
    """One confusion matrix over all pixels."""
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
    """As :func:`evaluate`, with up to ``worst`` tiles that have wrong pixels, the worst first.

    Only these are kept in memory, however many tiles there are.
    """
    total = Confusion()
    kept: list[tuple[int, int, EvaluatedTile]] = []  # smallest first; the number breaks ties, the earlier tile stays
    for number, evaluated in enumerate(evaluate_tiles(network, tiles, batch, threshold, progress)):
        total += evaluated.confusion
        heapq.heappush(kept, (evaluated.wrong, -number, evaluated))
        if len(kept) > worst:
            heapq.heappop(kept)
    return total, [evaluated for wrong, _, evaluated in sorted(kept, reverse=True, key=lambda k: k[:2]) if wrong]
