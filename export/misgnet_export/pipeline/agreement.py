"""Every stage's graph against the stage before, on real tiles: "it ran" never means "it agrees"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from misgnet_runtime.bundle import Interface
from misgnet_runtime.callables import Predict, Progress
from misgnet_runtime.engines import ExecutionOptions, streams_on_cpu
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.inference.detector import ChangeDetector, tile_per_stream
from misgnet_runtime.raster.dataset import Tile, stack

Answers = list[NDArray[np.float32]]

FLOAT_TOLERANCE = 1e-4  # probability; float32 rounding gives about 1e-6
MASK_AGREEMENT = 0.9999  # share of pixels; a probability next to the threshold may fall to either side
INT8_AGREEMENT = 0.9  # share of pixels; below this, quantization is broken rather than lossy


@dataclass(frozen=True)
class Agreement:
    """Largest and mean difference of the probability of change, and share of pixels with the same mask."""

    largest: float
    mean: float
    pixels: float

    def __str__(self) -> str:
        return f"largest difference {self.largest:.1e}, {100 * self.pixels:.3f} % of pixels agree"


def detector_of(model: onnx.ModelProto, interface: Interface) -> ChangeDetector:
    """``model`` in ONNX Runtime, with a stream for each core, up to four."""
    execution = ExecutionOptions(streams=streams_on_cpu())
    return ChangeDetector(OnnxRuntimeEngine(model.SerializeToString(), interface.max_batch, execution), interface)


def answers_of(
    model: onnx.ModelProto, interface: Interface, tiles: Sequence[Tile], progress: Progress | None = None
) -> Answers:
    """What ``model`` answers in ONNX Runtime on ``tiles``."""
    with detector_of(model, interface) as detector, tile_per_stream(detector) as predict:
        return answers(predict, tiles, progress, batch=detector.engine.streams)


def answers(predict: Predict, tiles: Sequence[Tile], progress: Progress | None = None, batch: int = 1) -> Answers:
    """The probability of change, float32 (T, T), of each tile; ``predict`` is given ``batch`` at once."""
    found: Answers = []
    for first in range(0, len(tiles), batch):
        found += list(predict(*stack(tiles[first : first + batch])))
        if progress:
            progress(len(found), len(tiles))
    return found


def compare(first: Answers, second: Answers, threshold: float) -> Agreement:
    """Compare the answers of two stages on the same tiles; NaN anywhere makes the figures fail."""
    a, b = np.stack(first), np.stack(second)
    difference = np.abs(a - b)
    largest = float(difference.max()) if np.isfinite(difference).all() else float("inf")
    return Agreement(largest, float(difference.mean()), float(((a > threshold) == (b > threshold)).mean()))


def require_same(found: Agreement, interface: Interface, what: str, before: str) -> None:
    """GateFailed where a float stage changed the numbers; of a graph that answers with masks, its pixels."""
    if interface.output == "mask":
        if not found.pixels >= MASK_AGREEMENT:
            raise GateFailed(
                f"{what} differs from {before} in {100 * (1 - found.pixels):.3f} % of the masks' pixels (allowed "
                f"{100 * (1 - MASK_AGREEMENT):.2f} %); the stage in between is wrong for this checkpoint"
            )
    elif not found.largest <= FLOAT_TOLERANCE:
        raise GateFailed(
            f"{what} differs from {before} by up to {found.largest:.2e} in the probability of change "
            f"(allowed {FLOAT_TOLERANCE:.0e}); the stage in between is wrong for this checkpoint"
        )


def require_masks(found: Agreement, what: str, before: str) -> None:
    """GateFailed where what must answer as another graph does, rounding aside, gives other masks or probabilities."""
    if not (found.pixels >= MASK_AGREEMENT and found.mean <= FLOAT_TOLERANCE):
        raise GateFailed(
            f"{what} differs from {before} in {100 * (1 - found.pixels):.3f} % of the masks' pixels (allowed "
            f"{100 * (1 - MASK_AGREEMENT):.2f} %) and by {found.mean:.1e} in the mean probability of change (allowed "
            f"{FLOAT_TOLERANCE:.0e}); build without --split, and report this"
        )


def require_close(found: Agreement, what: str, before: str) -> None:
    """GateFailed where an INT8 graph is not lossy but broken."""
    if not (found.pixels >= INT8_AGREEMENT and np.isfinite(found.mean)):
        raise GateFailed(
            f"{what} agrees with {before} in only {100 * found.pixels:.2f} % of pixels (at least "
            f"{100 * INT8_AGREEMENT:.0f} % needed); look at the calibration tiles"
        )
