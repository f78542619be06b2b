"""The PyTorch network on tiles: probabilities, masks, one confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from misgnet.network import MISGNet
from misgnet.tensors import normalise, unit_range
from misgnet_runtime.callables import Progress
from misgnet_runtime.metrics import Confusion
from misgnet_runtime.scene import predict_scene
from misgnet_runtime.tiles import Tile, TileSet, stack


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


def evaluate(network: MISGNet, tiles: TileSet, batch: int = 4, progress: Progress | None = None) -> Confusion:
    """One confusion matrix over all pixels; a pixel counts once, padding never."""
    parts = []
    for tile, probability in predict_tiles(network, tiles, batch, progress):
        rows, columns = tile.owned
        parts.append(Confusion.of(probability[rows, columns] > 0.5, tile.label[rows, columns]))
    return Confusion.total(parts)
