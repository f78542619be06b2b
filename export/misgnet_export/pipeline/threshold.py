"""The stage that tunes the threshold: what gives the float graph its best F1 on validation tiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misgnet_export.pipeline.agreement import detector_of
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.result import FloatGraph, Tuned
from misgnet_runtime.callables import Predict, Progress
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.detector import tile_per_stream
from misgnet_runtime.raster.dataset import TileSet, stack

_STEPS = 1000
_TILES = 128


def tune_threshold(context: BuildContext, graph: FloatGraph, validation: TileSet) -> Tuned:
    """Run the float graph on validation tiles. Raises InputError where no label of theirs holds change."""
    with context.log.stage("tune the threshold") as stage:
        tiles = validation.spread(_TILES)
        with detector_of(graph.model, context.interface) as detector, tile_per_stream(detector) as predict:
            tuned = best_threshold(predict, tiles, stage.progress, batch=detector.engine.streams)
        stage.finding = str(tuned)
    return tuned


def best_threshold(predict: Predict, tiles: TileSet, progress: Progress, batch: int = 1) -> Tuned:
    """Try all thresholds in steps of 0.001; of equally good ones the middle is taken. ``batch``: tiles at once.

    Raises InputError where no label of ``tiles`` holds change: then there is no F1.
    """
    counts = np.zeros((2, _STEPS), np.int64)
    done = 0
    for part in tiles.batches(batch):
        for tile, probability in zip(part, predict(*stack(part)), strict=True):
            counts += _histograms(probability[tile.owned], tile.label[tile.owned])
        done += len(part)
        progress(done, len(tiles))
    if not counts[1].any():
        raise InputError("--threshold tuned: the labels of --val hold no change; give a number, or other tiles")
    f1 = _f1_above(counts)
    best = np.flatnonzero(f1 == f1.max())
    chosen = int(best[len(best) // 2])
    return Tuned((chosen + 1) / _STEPS, float(f1[chosen]), float(f1[_STEPS // 2 - 1]), len(tiles))


def _histograms(probability: NDArray[np.float32], label: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 (2, steps): pixels without change and with it, by the step that their probability ends in.

    Step i holds what is above i / steps and not above (i + 1) / steps: a threshold is exceeded, not met.
    """
    step = np.clip(np.ceil(probability.astype(np.float64) * _STEPS) - 1, 0, _STEPS - 1).astype(np.intp)
    return np.stack([np.bincount(step[label == changed], minlength=_STEPS) for changed in (False, True)])


def _f1_above(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 of "changed" by thresholds at the upper ends of all steps but the last."""
    above = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]  # false and true positives
    return 2 * above[1] / (above[0] + above[1] + counts[1].sum())
