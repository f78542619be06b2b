"""The shipping stage: evaluation tiles for the gate on the device, with the masks that the float model answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.request import BuildRequest
from misgnet_runtime.accuracy.evaluation_tiles import TILES_IN_A_FILE, EvaluationTiles, write_evaluation
from misgnet_runtime.callables import Predict
from misgnet_runtime.raster.dataset import Tile, TileSet, stack

EVALUATION = "evaluation"


def ship_evaluation(request: BuildRequest, predict: Predict, tiles: TileSet, root: Path, log: StageLog) -> None:
    """Write as many of ``tiles`` as ``request`` asks for, spread over the set, below ``root``."""
    chosen = tiles.spread(request.ship_eval)
    folder = root / EVALUATION
    folder.mkdir()
    with log.stage("ship evaluation tiles") as stage:
        for number, part in enumerate(chosen.batches(TILES_IN_A_FILE)):
            write_evaluation(folder / f"tiles_{number:04d}.npz", _with_masks(part, predict, request.threshold))
            stage.progress(number * TILES_IN_A_FILE + len(part), len(chosen))
        size = sum(path.stat().st_size for path in folder.iterdir())
        stage.finding = f"{len(chosen)} of {len(tiles)} tiles, {size / 1e6:.1f} MB"


def _with_masks(tiles: list[Tile], predict: Predict, threshold: float) -> EvaluationTiles:
    before, after = stack(tiles)
    return EvaluationTiles(
        before=before, after=after, label=np.stack([tile.label for tile in tiles]),
        reference=predict(before, after) > threshold, owned=np.array([_owned(tile) for tile in tiles], np.int64),
        names=np.array([tile.ref.name for tile in tiles], np.str_),
        sources=np.array([tile.ref.source.name for tile in tiles], np.str_),
    )  # fmt: skip


def _owned(tile: Tile) -> tuple[int, int, int, int]:
    rows, columns = tile.owned
    return rows.start, rows.stop, columns.start, columns.stop
