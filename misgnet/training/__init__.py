"""Trains the network on tiles: :func:`train` starts a run, :func:`resume` continues an interrupted one.

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
    """Trains a new run and writes its results into a folder.

    Writes ``best.safetensors`` (float32) and ``best_fp16.safetensors`` whenever the F1 of the averaged weights on
    ``val_tiles`` improves, ``last.safetensors`` at the end, ``state.safetensors`` for :func:`resume` after every
    epoch, and ``config.json``, ``log.jsonl``, ``curves.png`` and ``curves.svg``. Under torchrun, every process calls
    this function and the first process writes.

    Args:
        train_tiles: Labelled tiles to train on.
        val_tiles: Labelled tiles to validate on.
        run: Folder to create.
        recipe: Hyperparameters.
        start: Files to start from (default: random weights).
        force: Replace an existing run. It is removed as soon as the new run has saved a state.
        device: PyTorch device (default: CUDA if available, else the CPU).
        **surroundings: Fields of :class:`Surroundings` other than the device and the ranks.

    Returns:
        The progress and the best F1 at the end of the run.

    Raises:
        InputError: If a file cannot be read or written.
        GateFailed: If the training diverged.
        UsageError: If ``run`` exists and ``force`` is not set, or a value is invalid.
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
            refuse_existing(run, force)  # another process may have created it in the meantime
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
    """Resumes an interrupted run; its losses are the same as without the interruption.

    A finished run is not changed.

    Args:
        train_tiles: The tiles that the run was started with.
        val_tiles: The validation tiles that the run was started with.
        run: Folder of the run.
        asked: Fields of :class:`Recipe`, its parts or :class:`Start` that must equal those of the run.
        device: PyTorch device (default: CUDA if available, else the CPU).
        **surroundings: Fields of :class:`Surroundings` other than the device and the ranks.

    Returns:
        The progress and the best F1 at the end of the run.

    Raises:
        InputError: If a file cannot be read or written, or tiles or bundle differ from those of the run.
        GateFailed: If the training diverged.
        UsageError: If a field in ``asked`` differs from that of the run.
    """
    device = device or choose_device()
    recipe, start = read_config(run, {"train": train_tiles, "val": val_tiles})
    _check_given(run, recipe, start, asked or {})
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
    """Raises UsageError if the network does not support the size of the tiles or crops."""
    if tiles.tile % 32:
        raise UsageError(f"--tile is {tiles.tile}; it must be a multiple of 32")
    if recipe.crop is not None and recipe.crop > tiles.tile:
        raise UsageError(f"--crop is {recipe.crop}; it must be at most the size of the tiles, {tiles.tile} pixels")


def _check_given(run: Path, recipe: Recipe, start: Start, given: dict[str, Any]) -> None:
    own = {**asdict(recipe), **asdict(recipe.loss), **asdict(recipe.augmentation), **asdict(start)}
    for name, value in given.items():
        if own[name] != value:
            raise UsageError(
                f"the run {run} was started with --{name.replace('_', '-')} {own[name]}, not {value}; resume it with "
                f"the same options, or start another run from its weights: --init {run / 'best.safetensors'}"
            )
