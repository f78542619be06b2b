"""Computes the probability of change of image pairs with an engine and the interface that its graph was built with."""

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
from misgnet_runtime.callables import Image, Predict
from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.tiled import predict_scene

Probability = NDArray[np.float32]


class ChangeDetector:
    """Computes the probability of change of tiles of both dates. Owns its engine: use it in a ``with`` block.

    Threads may share it, as they may share its engine.
    """

    def __init__(self, engine: Engine, interface: Interface, batch: int | None = None) -> None:
        """Takes ownership of an open engine.

        Args:
            engine: An open engine; closed here if it does not match ``interface``.
            interface: Inputs and outputs of the graph.
            batch: Tiles per call, as requested or tuned; None: the caller chooses.

        Raises:
            InputError: The engine does not match ``interface``.
        """
        if found := misfit(engine, interface.inputs(), interface.outputs(), interface.max_batch):
            engine.close()
            raise InputError(f"the engine does not match its interface: {found}; build the bundle again")
        self.engine = engine
        self.interface = interface
        self.batch = batch

    def probability(self, before: Image, after: Image) -> Probability:
        """Returns the probability of change, float32 (B, T, T), of raw tiles (B, T, T, C) of both dates."""
        (output,) = self.engine.infer(arrays_for(self.interface, before, after)).values()
        return to_probability(output, self.interface)

    def sound_probability(self, before: Image, after: Image) -> Probability:
        """Same as :meth:`probability`; raises GateFailed for NaN and Inf, which a threshold would call unchanged."""
        return require_finite(self.probability(before, after), f"the engine on {self.engine.device}")

    def scene_probability(self, before: Image, after: Image, *, overlap: int, batch: int) -> Probability:
        """Returns the probability of change, float32 (H, W), of a pair of any size, (H, W, C).

        See :func:`predict_scene`. Raises GateFailed for NaN or Inf.
        """
        interface = self.interface
        return predict_scene(
            self.sound_probability, before, after, interface.tile, batch=batch, overlap=overlap,
            pixels=interface.pixels,
        )  # fmt: skip

    def __enter__(self) -> ChangeDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()


@contextmanager
def tile_per_stream(detector: ChangeDetector) -> Iterator[Predict]:
    """Yields :meth:`ChangeDetector.probability` for any number of tiles.

    With several streams, each stream gets one tile at a time (on a CPU, a core that computes a tile alone never waits).
    With one stream, tiles are computed in the engine's largest batches.
    """
    size = 1 if detector.engine.streams > 1 else detector.interface.max_batch
    with ThreadPoolExecutor(detector.engine.streams) as pool:

        def predict(before: Image, after: Image) -> Probability:
            parts = [slice(start, start + size) for start in range(0, len(before), size)]
            return np.concatenate(list(pool.map(lambda part: detector.probability(before[part], after[part]), parts)))

        yield predict


def arrays_for(interface: Interface, before: Image, after: Image) -> Arrays:
    """Returns the graph's inputs by name, from raw tiles (B, T, T, C) of both dates."""
    return {"before": as_input(before, interface), "after": as_input(after, interface)}


def as_input(images: Image, interface: Interface) -> NDArray[Any]:
    """Converts raw tiles (B, T, T, C) of one date to the graph's input."""
    return images if interface.raw else normalise(images, interface.normalization)


def to_probability(output: NDArray[Any], interface: Interface) -> Probability:
    """Converts a graph's output to probabilities, float32 (B, T, T).

    The softmax of two classes is the sigmoid of their difference.
    """
    if interface.output == "logits":
        difference = output[:, 1].astype(np.float32) - output[:, 0].astype(np.float32)
        return np.asarray(0.5 * (1 + np.tanh(0.5 * difference)), np.float32)
    return output.astype(np.float32, copy=False)


def misfit(engine: Engine, inputs: list[TensorEntry], outputs: list[TensorEntry], max_batch: int) -> str | None:
    """Returns how the engine differs from the stated interface, or None; the order of tensors does not matter."""
    for specs, entries in ((engine.inputs, inputs), (engine.outputs, outputs)):
        found = sorted(_of_spec(spec, any_batch=max_batch == 1) for spec in specs)
        stated = sorted(map(_of_entry, entries))
        if found != stated:
            return f"it has {_listed(found)}, the interface says {_listed(stated)}"
    if engine.max_batch < max_batch:
        return f"it supports batches up to {engine.max_batch}, the interface says {max_batch}"
    return None


_Tensor = tuple[str, str, tuple[int, ...]]


def _of_spec(spec: TensorSpec, *, any_batch: bool) -> _Tensor:
    """Returns what is compared; with ``any_batch``, a graph that computes only batches of 1 counts as any other."""
    fixed = any_batch and spec.shape[:1] == (1,)
    return spec.name, spec.dtype, (-1, *spec.shape[1:]) if fixed else spec.shape


def _of_entry(entry: TensorEntry) -> _Tensor:
    return entry.name, entry.dtype, tuple(entry.shape)


def _listed(tensors: list[_Tensor]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in tensors)
