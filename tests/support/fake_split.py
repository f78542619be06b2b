"""Provides a fake split engine in NumPy whose output depends on a whole tile, and the same engine in one piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.bundle.manifest import Interface, TensorEntry
from support.bundles import FEATURES, INTERFACE, SPLIT_FLOAT


class FakeSplit:
    """Computes features as differences from the tile's mean, so that any changed pixel changes the whole tile.

    The output is the mean absolute difference of the features, divided by 255. ``encoded`` counts encoded tiles;
    ``factor`` multiplies the features.
    """

    device = "a fake"
    batch = None
    entry = SPLIT_FLOAT

    def __init__(self, interface: Interface = INTERFACE, features: list[TensorEntry] = FEATURES) -> None:
        self.interface, self.features = interface, features
        self.encoder = self.engine = SimpleNamespace(device=self.device, streams=1)
        self.encoded = 0
        self.factor = np.float32(1)

    def encode(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        self.encoded += len(images)
        planes = np.moveaxis(images, 3, 1).astype(np.float32)
        planes -= planes.mean((2, 3), keepdims=True)
        return [planes[:, :2] * self.factor, planes[:, 2:] * self.factor]

    def compare(
        self, before: Sequence[NDArray[np.float32]], after: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        first, second = (np.concatenate(list(part), axis=1) for part in (before, after))
        return np.abs(second - first).mean(1) / np.float32(255)

    def probability(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.compare(self.encode(before), self.encode(after))

    def opener(self) -> Any:
        """Returns an opener of this engine, as a split engine or in one piece."""

        @contextmanager
        def opened(
            bundle: object, engine: str = "auto", *_: object, optimise_for: object = None
        ) -> Iterator[tuple[FakeSplit, Any, str]]:
            yield self, self.entry, "a fake"

        return opened
