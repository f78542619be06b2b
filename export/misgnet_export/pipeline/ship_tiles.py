"""Writes golden tiles, on which engines are checked on every machine, and evaluation tiles for the gate on a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from misgnet_export.pipeline.context import BuildContext
from misgnet_runtime.accuracy.evaluation_tiles import EvaluationTiles, tiles_in_a_file, write_evaluation
from misgnet_runtime.accuracy.parity import ParityReport
from misgnet_runtime.bundle.golden import GoldenTiles, write_golden
from misgnet_runtime.callables import Predict
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.dataset import Tile, TileSet, read_tile, stack

GOLDEN = "golden/tiles.npz"
EVALUATION = "evaluation"
_GOLDEN_TILES = 4


def ship_golden_tiles(root: Path, tiles: TileSet, parity: ParityReport, predict: Predict) -> Path:
    """Writes a few evaluation tiles with the float model's output: those with most change, from different images.

    Without labels, those in which the float model finds most.
    """
    counts = [tile.reference for tile in parity.engines[0].tiles]
    order = sorted(range(len(tiles)), key=lambda i: (-(counts[i][0] + counts[i][2 if tiles.labelled else 1]), i))
    picked = _first_of_each_source(tiles, order)[:_GOLDEN_TILES]
    chosen: list[Tile] = [read_tile(tiles[i]) for i in picked]
    before, after = stack(chosen)
    path = root / GOLDEN
    path.parent.mkdir(exist_ok=True)
    write_golden(path, GoldenTiles(before, after, predict(before, after)))
    return path


def _first_of_each_source(tiles: TileSet, order: list[int]) -> list[int]:
    """Returns ``order`` with the first tile of each image moved to the front."""
    seen: set[str] = set()
    first: list[int] = []
    rest: list[int] = []
    for i in order:
        name = tiles[i].source.name
        (rest if name in seen else first).append(i)
        seen.add(name)
    return first + rest


def ship_evaluation(context: BuildContext, tiles: TileSet, predict: Predict) -> None:
    """Writes the requested number of ``tiles``, spread over the set, with the masks of the float model."""
    chosen = tiles.spread(context.request.ship_eval)
    folder = context.root / EVALUATION
    folder.mkdir()
    size = tiles_in_a_file(chosen.tile, chosen.pixels)
    with context.log.stage("ship evaluation tiles") as stage:
        for number, part in enumerate(chosen.batches(size)):
            masks = _with_masks(part, predict, context.policy.threshold)
            write_evaluation(folder / f"tiles_{number:04d}.npz", masks)
            stage.progress(number * size + len(part), len(chosen))
        written = sum(path.stat().st_size for path in folder.iterdir())
        stage.finding = f"{len(chosen)} of {plural(len(tiles), 'tile')}, {written / 1e6:.1f} MB"


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
