"""Compares every stage's graph with the stage before on real tiles: a graph that runs may still be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_runtime.accuracy.gate import LEAST_AGREEMENT
from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Predict, Progress
from misgnet_runtime.engines import ExecutionOptions, streams_on_cpu
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.inference.detector import ChangeDetector, tile_per_stream
from misgnet_runtime.raster.dataset import Tile, stack

Predictions = list[NDArray[np.float32]]

FLOAT_TOLERANCE = 1e-4  # probability; float32 rounding gives about 1e-6
MASK_AGREEMENT = 0.9999  # share of pixels; a probability close to the threshold may end up on either side


@dataclass(frozen=True)
class Agreement:
    """The agreement of two graphs on the same tiles."""

    largest: float  # largest difference of the probability of change
    mean: float  # mean difference of the probability of change
    pixels: float  # share of pixels with the same mask

    def __str__(self) -> str:
        return f"largest difference {self.largest:.1e}, {100 * self.pixels:.3f} % of pixels agree"


def detector_of(model: onnx.ModelProto, interface: Interface) -> ChangeDetector:
    """Opens ``model`` in ONNX Runtime with one stream per core, at most four."""
    execution = ExecutionOptions(streams=streams_on_cpu())
    return ChangeDetector(OnnxRuntimeEngine(model.SerializeToString(), interface.max_batch, execution), interface)


def predictions_of(
    model: onnx.ModelProto, interface: Interface, tiles: Sequence[Tile], progress: Progress | None = None
) -> Predictions:
    """Runs ``model`` in ONNX Runtime on ``tiles``; see ``predict_tiles``."""
    with detector_of(model, interface) as detector, tile_per_stream(detector) as predict:
        return predict_tiles(predict, tiles, progress, batch=detector.engine.streams)


def predict_tiles(
    predict: Predict, tiles: Sequence[Tile], progress: Progress | None = None, batch: int = 1
) -> Predictions:
    """Returns the probability of change, float32 (T, T), of each tile; ``predict`` is called with ``batch`` at once."""
    found: Predictions = []
    for first in range(0, len(tiles), batch):
        found += list(predict(*stack(tiles[first : first + batch])))
        if progress:
            progress(len(found), len(tiles))
    return found


def compare(first: Predictions, second: Predictions, threshold: float) -> Agreement:
    """Compares the predictions of two stages on the same tiles; a NaN anywhere makes every check fail."""
    a, b = np.stack(first), np.stack(second)
    difference = np.abs(a - b)
    largest = float(difference.max()) if np.isfinite(difference).all() else float("inf")
    return Agreement(largest, float(difference.mean()), float(((a > threshold) == (b > threshold)).mean()))


def require_same(found: Agreement, interface: Interface, what: str, before: str) -> None:
    """Raises GateFailed if a float stage changed the probabilities or, for a graph that outputs masks, the masks."""
    if interface.output == "mask":
        if not found.pixels >= MASK_AGREEMENT:
            raise GateFailed(
                f"{what} differs from {before} in {100 * (1 - found.pixels):.3f} % of the masks' pixels (allowed "
                f"{100 * (1 - MASK_AGREEMENT):.2f} %); the stage in between is wrong for this network"
            )
    elif not found.largest <= FLOAT_TOLERANCE:
        raise GateFailed(
            f"{what} differs from {before} by up to {found.largest:.2e} in the probability of change "
            f"(allowed {FLOAT_TOLERANCE:.0e}); the stage in between is wrong for this network"
        )


def require_masks(found: Agreement, what: str, before: str) -> None:
    """Raises GateFailed if masks or mean probabilities of two equivalent graphs differ beyond rounding."""
    if not (found.pixels >= MASK_AGREEMENT and found.mean <= FLOAT_TOLERANCE):
        raise GateFailed(
            f"{what} differs from {before} in {100 * (1 - found.pixels):.3f} % of the masks' pixels (allowed "
            f"{100 * (1 - MASK_AGREEMENT):.2f} %) and by {found.mean:.1e} in the mean probability of change (allowed "
            f"{FLOAT_TOLERANCE:.0e}); build without --split, and report this"
        )


def is_broken(found: Agreement) -> bool:
    """Returns whether a quantized graph is more than lossy; a loss of F1 on few tiles may not show it."""
    return not (found.pixels >= LEAST_AGREEMENT and np.isfinite(found.mean))
