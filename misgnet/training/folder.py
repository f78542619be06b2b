"""Manages the folder of a run: stores its configuration, and replaces an older run safely."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from misgnet.training.augmentation import Augmentation
from misgnet.training.losses import LossWeights
from misgnet.training.qat import quantizer_sites, sites_sha256
from misgnet.training.recipe import Recipe
from misgnet.training.state import STATE_FILE
from misgnet_runtime.bundle import NodePlacement
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.machine import describe_machine
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.atomic import write_file

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Start:
    """Files that a run starts from; all are optional."""

    init: Path | None = None  # checkpoint with the weights of the whole network
    encoder: Path | None = None  # PVTv2-B1 file with the weights of the encoder; not together with init
    teacher: Path | None = None  # checkpoint whose predictions are an additional target
    qat: Path | None = None  # bundle whose INT8 graph the run imitates; requires init
    qat_graph: str | None = None  # recipe name of that graph; None: the only one, or the one for the CPU

    def __post_init__(self) -> None:
        if self.init and self.encoder:
            raise UsageError("--init sets all weights, --encoder only those of the encoder; use one of the two")
        if self.qat and not self.init:
            raise UsageError("--qat requires --init with the weights that the bundle was built from")
        if self.qat_graph and not self.qat:
            raise UsageError("--qat-graph selects an INT8 graph of a bundle; name the bundle with --qat")

    def quantizer_sites(self) -> tuple[NodePlacement, ...]:
        """Returns the INT8 operators that the run imitates, none by default; raises as ``qat.quantizer_sites``."""
        return quantizer_sites(self.qat, self.qat_graph) if self.qat else ()


@contextmanager
def new_folder(run: Path) -> Iterator[None]:
    """Creates an empty folder ``run``; an older run is kept next to it until the new run has saved a state.

    If the block ends before that, the older run is restored.
    """
    old = _older(run)
    if run.exists() and not ((run / STATE_FILE).exists() or not old.exists()):
        shutil.rmtree(run)  # left by a run that was killed before its first save; the older run is still in ``old``
    if run.exists():
        shutil.rmtree(old, ignore_errors=True)
        run.rename(old)
    try:
        run.mkdir(parents=True)
        yield
    finally:
        if old.exists() and not (run / STATE_FILE).exists():
            shutil.rmtree(run, ignore_errors=True)
            old.rename(run)
        shutil.rmtree(old, ignore_errors=True)


def forget_older(run: Path) -> None:
    """Removes the run that this one replaced, if a killed process left it and this run has saved a state."""
    if (run / STATE_FILE).exists():
        shutil.rmtree(_older(run), ignore_errors=True)


def _older(run: Path) -> Path:
    return run.with_name(f".{run.name}.old")


def write_config(run: Path, recipe: Recipe, start: Start, tiles: Mapping[str, TileSet]) -> None:
    """Writes config.json with recipe, files, tiles, versions and host description."""
    content = {
        "recipe": asdict(recipe),
        "start": {key: str(value) if value else None for key, value in asdict(start).items()},
        "int8_places_sha256": _sites_digest(start),
        "tiles": {name: _identity(part) for name, part in tiles.items()},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
    }
    write_file(run / CONFIG_FILE, (json.dumps(content, indent=2) + "\n").encode())


def read_config(run: Path, tiles: Mapping[str, TileSet]) -> tuple[Recipe, Start]:
    """Reads the recipe and the files that a run was started with.

    Raises InputError if the configuration is missing or damaged, or the tiles or the bundle have changed.
    """
    path = run / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        recipe, start, known = _recipe(content["recipe"]), _start(content["start"]), content["tiles"]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist, so there is no run to resume; omit --resume") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}; start over with --force") from error
    for name, part in tiles.items():
        if known.get(name) != (found := _identity(part)):
            then, now = known.get(name, {}).get("count"), found["count"]
            raise InputError(
                f"the run {run} was started with other tiles in {name}: their number was {then} and is {now} in "
                f"{part.root}, or their names or sizes differ; resume with the same tiles, or start over"
            )
    if start.qat and content.get("int8_places_sha256") != _sites_digest(start):
        raise InputError(
            f"the bundle {start.qat} has changed since the run {run} was started; restore the bundle, or start over"
        )
    return recipe, start


def _sites_digest(start: Start) -> str | None:
    return sites_sha256(start.quantizer_sites()) if start.qat else None


def _identity(tiles: TileSet) -> dict[str, Any]:
    names = "\n".join(ref.name for ref in tiles)
    return {"count": len(tiles), "side": tiles.tile, "names_sha256": hashlib.sha256(names.encode()).hexdigest()}


def _start(values: dict[str, str | None]) -> Start:
    return Start(**{key: Path(value) if value and key != "qat_graph" else value for key, value in values.items()})  # type: ignore[arg-type]


def _recipe(values: dict[str, Any]) -> Recipe:
    known = {field.name for field in fields(Recipe)}
    if values.keys() != known:
        raise ValueError(f"unknown or missing recipe fields: {', '.join(sorted(values.keys() ^ known))}")
    values = {**values, "loss": LossWeights(**values["loss"]), "augmentation": Augmentation(**values["augmentation"])}
    return Recipe(**{**values, "freeze": tuple(values["freeze"])})
