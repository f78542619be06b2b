"""Images in, probability of change out: an engine together with the interface its graph was built with."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.accuracy.metrics import require_finite
from misgnet_runtime.bundle.manifest import Interface, TensorEntry
from misgnet_runtime.bundle.preprocessing import normalise
from misgnet_runtime.callables import Predict, RgbImage
from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.tiled import predict_scene

Probability = NDArray[np.float32]


class ChangeDetector:
    """An open engine with its interface: images of both dates in, probability of change out.

    It owns the engine; use it in a ``with`` block. Threads may share it, as its engine.
    ``batch``: tiles at once where there are many, if that was asked for or tuned. Raises InputError, and closes the
    engine, where it is not what ``interface`` says.
    """

    def __init__(self, engine: Engine, interface: Interface, batch: int | None = None) -> None:
        if found := misfit(engine, interface.inputs(), interface.outputs(), interface.max_batch):
            engine.close()
            raise InputError(f"the engine does not fit its interface: {found}; build the bundle again")
        self.engine = engine
        self.interface = interface
        self.batch = batch

    def probability(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Probability:
        """uint8 RGB tiles (B, T, T, 3) of both dates -> probability of change, float32 (B, T, T)."""
        (output,) = self.engine.infer(arrays_for(self.interface, before, after)).values()
        return to_probability(output, self.interface)

    def sound_probability(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Probability:
        """As :meth:`probability`, without NaN or Inf: a threshold would call them "no change"; GateFailed there."""
        return require_finite(self.probability(before, after), f"the engine on {self.engine.device}")

    def scene_probability(self, before: RgbImage, after: RgbImage) -> Probability:
        """A pair of any size, uint8 (H, W, 3) -> float32 (H, W), tile by tile; see :func:`predict_scene`.

        Raises GateFailed as :meth:`sound_probability`.
        """
        return predict_scene(self.sound_probability, before, after, self.interface.tile, self.interface.max_batch)

    def __enter__(self) -> ChangeDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()


@contextmanager
def tile_per_stream(detector: ChangeDetector) -> Iterator[Predict]:
    """:meth:`ChangeDetector.probability` for any number of tiles: one at a time for each stream of the engine.

    On a CPU a core that computes one tile alone waits for no other. With one stream they come in the largest batches
    that the engine takes.
    """
    size = 1 if detector.engine.streams > 1 else detector.interface.max_batch
    with ThreadPoolExecutor(detector.engine.streams) as pool:

        def predict(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Probability:
            parts = [slice(start, start + size) for start in range(0, len(before), size)]
            return np.concatenate(list(pool.map(lambda part: detector.probability(before[part], after[part]), parts)))

        yield predict


def arrays_for(interface: Interface, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Arrays:
    """The graph's inputs from uint8 RGB tiles (B, T, T, 3)."""
    return {"before": as_input(before, interface), "after": as_input(after, interface)}


def as_input(images: NDArray[np.uint8], interface: Interface) -> NDArray[Any]:
    """uint8 RGB tiles (B, T, T, 3) of one date in the graph's input form."""
    return images if interface.input == "uint8" else normalise(images)


def to_probability(output: NDArray[Any], interface: Interface) -> Probability:
    """A graph's output -> float32 (B, T, T). Softmax over two classes is the sigmoid of their difference."""
    if interface.output == "logits":
        difference = output[:, 1].astype(np.float32) - output[:, 0].astype(np.float32)
        return np.asarray(0.5 * (1 + np.tanh(0.5 * difference)), np.float32)
    return output.astype(np.float32, copy=False)


def misfit(engine: Engine, inputs: list[TensorEntry], outputs: list[TensorEntry], max_batch: int) -> str | None:
    """What the engine has and what is stated of it, where they differ; tensors may come in any order."""
    for specs, entries in ((engine.inputs, inputs), (engine.outputs, outputs)):
        found, stated = sorted(map(_of_spec, specs)), sorted(map(_of_entry, entries))
        if found != stated:
            return f"it has {_listed(found)}, the interface says {_listed(stated)}"
    if engine.max_batch < max_batch:
        return f"it takes batches up to {engine.max_batch}, the interface says {max_batch}"
    return None


_Tensor = tuple[str, str, tuple[int, ...]]


def _of_spec(spec: TensorSpec) -> _Tensor:
    return spec.name, spec.dtype, spec.shape


def _of_entry(entry: TensorEntry) -> _Tensor:
    return entry.name, entry.dtype, tuple(entry.shape)


def _listed(tensors: list[_Tensor]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in tensors)
