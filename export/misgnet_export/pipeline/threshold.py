"""Tunes the threshold: finds the value with the best F1 of the float graph on validation tiles."""

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
    """Tunes the threshold on validation tiles. Raises InputError if there are no labels, or none contains change."""
    if not validation.labelled:
        raise InputError(f"--threshold tuned: {validation.root} has no labels; add label/, or give a number")
    with context.log.stage("tune the threshold") as stage:
        tiles = validation.spread(_TILES)
        with detector_of(graph.model, context.interface) as detector, tile_per_stream(detector) as predict:
            tuned = best_threshold(predict, tiles, stage.progress, batch=detector.engine.streams)
        stage.finding = str(tuned)
    return tuned


def best_threshold(predict: Predict, tiles: TileSet, progress: Progress, batch: int = 1) -> Tuned:
    """Tries all thresholds in steps of 0.001; of equally good ones, takes the middle one.

    ``batch`` is the number of tiles per call. Raises InputError if no label contains change: then F1 is undefined.
    """
    counts = np.zeros((2, _STEPS), np.int64)
    done = 0
    for part in tiles.batches(batch):
        for tile, probability in zip(part, predict(*stack(part)), strict=True):
            counts += _histograms(probability[tile.owned], tile.label[tile.owned])
        done += len(part)
        progress(done, len(tiles))
    if not counts[1].any():
        raise InputError("--threshold tuned: the labels of --val contain no change; give a number or other tiles")
    f1 = _f1_above(counts)
    best = np.flatnonzero(f1 == f1.max())
    chosen = int(best[len(best) // 2])
    return Tuned((chosen + 1) / _STEPS, float(f1[chosen]), float(f1[_STEPS // 2 - 1]), len(tiles))


def _histograms(probability: NDArray[np.float32], label: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Counts pixels without and with change by the step that contains their probability; int64 (2, steps).

    Step i contains values above i / steps and up to (i + 1) / steps, because a pixel is changed above the threshold.
    """
    step = np.clip(np.ceil(probability.astype(np.float64) * _STEPS) - 1, 0, _STEPS - 1).astype(np.intp)
    return np.stack([np.bincount(step[label == changed], minlength=_STEPS) for changed in (False, True)])


def _f1_above(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the F1 of the changed class for thresholds at the upper ends of all steps except the last."""
    above = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]  # false and true positives
    return 2 * above[1] / (above[0] + above[1] + counts[1].sum())
