"""Training from tiles: one call trains a run, or goes on with it.

from misgnet.training import Recipe, train

outcome = train(train_tiles, val_tiles, Path("run"), Recipe(minutes=30))
outcome.best_f1
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from misgnet.devices import choose_device
from misgnet.training.folder import Start, forget_older, new_folder, read_config, write_config
from misgnet.training.log import EpochReport, Report, StepReport
from misgnet.training.loop import Surroundings, Trainer
from misgnet.training.ranks import check_batch, process_group
from misgnet.training.recipe import Recipe, rate_factor
from misgnet.training.state import Counters
from misgnet_runtime.errors import UsageError
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.atomic import alone, refuse_existing

__all__ = ["Counters", "EpochReport", "Recipe", "Report", "Start", "StepReport", "rate_factor", "resume", "train"]


def train(
    train_tiles: TileSet,
    val_tiles: TileSet,
    run: Path,
    recipe: Recipe,
    start: Start = Start(),  # noqa: B008 - frozen
    *,
    force: bool = False,
    device: torch.device | None = None,
    **surroundings: Any,
) -> Counters:
    """Train a new run in the folder ``run`` and say where it stands at the end.

    Writes there, whenever the averaged weights are better on ``val_tiles`` than before, ``best.safetensors``
    (float32) and ``best_fp16.safetensors``; at the end ``last.safetensors``; after every epoch
    ``state.safetensors``, from which :func:`resume` goes on; and ``config.json``, ``log.jsonl``,
    ``curves.png`` and ``.svg``. Under torchrun every process calls this, and the first one writes.

    ``surroundings``: the fields of :class:`Surroundings` beside the device. Raises InputError for what cannot be
    read or written, GateFailed where training diverged; UsageError where ``run`` exists, unless ``force``: then
    the older run is removed as soon as the new one has saved a state.
    """
    device = device or choose_device()
    check_tiles(train_tiles, recipe)
    with process_group(device) as ranks:
        check_batch(min(recipe.batch, len(train_tiles)), ranks)
        if ranks.first:
            refuse_existing(run, force)  # before the weights are read
        trainer = Trainer(
            train_tiles, val_tiles, run, recipe, start, at=Surroundings(device=device, ranks=ranks, **surroundings)
        )
        if not ranks.first:
            return trainer.fit()
        with alone(run):
            refuse_existing(run, force)  # another run may have made it since
            with new_folder(run):
                write_config(run, trainer.recipe, start, {"train": train_tiles, "val": val_tiles})
                return trainer.fit()


def resume(
    train_tiles: TileSet,
    val_tiles: TileSet,
    run: Path,
    asked: dict[str, Any] | None = None,
    *,
    device: torch.device | None = None,
    **surroundings: Any,
) -> Counters:
    """Go on with the run in the folder ``run``: the same losses as if it had never been interrupted.

    ``asked``: fields of the recipe, its parts or :class:`Start` that the caller names again; UsageError where one
    is not the run's own. The rest is as for :func:`train`; a run that is finished stays as it is.
    """
    device = device or choose_device()
    recipe, start = read_config(run, {"train": train_tiles, "val": val_tiles})
    _check_asked(run, recipe, start, asked or {})
    with process_group(device) as ranks:
        check_batch(min(recipe.batch, len(train_tiles)), ranks)
        trainer = Trainer(
            train_tiles, val_tiles, run, recipe, start, at=Surroundings(device=device, ranks=ranks, **surroundings)
        )
        with alone(run) if ranks.first else nullcontext():
            trainer.resume()
            if ranks.first:
                forget_older(run)
            return trainer.fit()


def check_tiles(tiles: TileSet, recipe: Recipe) -> None:
    """UsageError where tiles or crops are no size that the network takes."""
    if tiles.tile % 32:
        raise UsageError(f"--tile is {tiles.tile}; the network takes multiples of 32")
    if recipe.crop is not None and recipe.crop > tiles.tile:
        raise UsageError(f"--crop is {recipe.crop}, which is more than the tiles' {tiles.tile} pixels")


def _check_asked(run: Path, recipe: Recipe, start: Start, asked: dict[str, Any]) -> None:
    own = {**asdict(recipe), **asdict(recipe.loss), **asdict(recipe.augmentation), **asdict(start)}
    for name, value in asked.items():
        if own[name] != value:
            raise UsageError(
                f"the run {run} was started with --{name.replace('_', '-')} {own[name]}, not {value}; resume it as "
                f"it was, or start another one from its weights: --init {run / 'best.safetensors'}"
            )
