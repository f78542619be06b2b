"""Images in, probability of change out: an engine together with the interface its graph was built with."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.engines.base import Arrays, Engine
from misgnet_runtime.errors import InputError
from misgnet_runtime.images import RgbImage
from misgnet_runtime.manifest import Interface
from misgnet_runtime.normalisation import normalise
from misgnet_runtime.tiling import cover, cut

Probability = NDArray[np.float32]


class ChangeDetector:
    """A network that runs here. Owns its engine; use it in a ``with`` block. Not thread-safe."""

    def __init__(self, engine: Engine, interface: Interface) -> None:
        self.engine = engine
        self.interface = interface

    def probability(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Probability:
        """uint8 RGB tiles (B, T, T, 3) of both dates -> probability of change, float32 (B, T, T)."""
        (output,) = self.engine.infer(arrays_for(self.interface, before, after)).values()
        return to_probability(output, self.interface)

    def scene_probability(self, before: RgbImage, after: RgbImage) -> Probability:
        """A pair of any size, uint8 (H, W, 3) -> float32 (H, W), tile by tile; edge tiles are shifted inward."""
        if before.shape != after.shape:
            raise InputError(f"the two dates differ in size: {before.shape[1]} x {before.shape[0]} and {after.shape[1]} x {after.shape[0]} px")
        result = np.empty(before.shape[:2], np.float32)
        cells = cover(*before.shape[:2], self.interface.tile)
        for start in range(0, len(cells), self.interface.max_batch):
            part = cells[start : start + self.interface.max_batch]
            tiles = (np.stack([cut(image, cell) for cell in part]) for image in (before, after))
            for cell, tile in zip(part, self.probability(*tiles), strict=True):
                result[cell.owned_in_image()] = tile[cell.owned_in_tile()]
        return result

    def __enter__(self) -> ChangeDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()


def arrays_for(interface: Interface, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Arrays:
    """The graph's inputs from uint8 RGB tiles (B, T, T, 3)."""
    if interface.input == "uint8":
        return {"before": before, "after": after}
    return {"before": normalise(before), "after": normalise(after)}


def to_probability(output: NDArray[Any], interface: Interface) -> Probability:
    """A graph's output -> float32 (B, T, T). Softmax over two classes is the sigmoid of their difference."""
    if interface.output == "logits":
        difference = output[:, 1].astype(np.float32) - output[:, 0].astype(np.float32)
        return np.asarray(0.5 * (1 + np.tanh(0.5 * difference)), np.float32)
    return output.astype(np.float32, copy=False)
