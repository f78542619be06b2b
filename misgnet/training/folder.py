"""A run's folder: what it was started with, and how a new run takes an old one's place."""

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
from misgnet.training.qat import places_of, places_sha256
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
    """Files that a run begins with: all weights, or the encoder's alone; and a teacher to learn from.

    ``qat``: a bundle whose INT8 graph ``qat_graph`` (a recipe's name) the run imitates; None where it has only one,
    or takes that for the CPU.
    """

    init: Path | None = None
    encoder: Path | None = None
    teacher: Path | None = None
    qat: Path | None = None
    qat_graph: str | None = None

    def __post_init__(self) -> None:
        if self.init and self.encoder:
            raise UsageError("--init gives all weights and --encoder a part of them; give one of the two")
        if self.qat and not self.init:
            raise UsageError("--qat fine-tunes the weights that the bundle was built from; name them with --init")
        if self.qat_graph and not self.qat:
            raise UsageError("--qat-graph names one of a bundle's INT8 graphs; name the bundle with --qat")

    def places(self) -> tuple[NodePlacement, ...]:
        """What the run imitates of the bundle's graph; nothing without one. Raises as ``places_of``."""
        return places_of(self.qat, self.qat_graph) if self.qat else ()


@contextmanager
def new_folder(run: Path) -> Iterator[None]:
    """An empty folder ``run``. An older run survives beside it until the new one has saved its state."""
    old = _older(run)
    if run.exists() and not ((run / STATE_FILE).exists() or not old.exists()):
        shutil.rmtree(run)  # left by a run that was killed before its first state; the older one still waits
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
    """Remove the run that this one replaced, where a kill has left it: this one has a state of its own."""
    if (run / STATE_FILE).exists():
        shutil.rmtree(_older(run), ignore_errors=True)


def _older(run: Path) -> Path:
    return run.with_name(f".{run.name}.old")


def write_config(run: Path, recipe: Recipe, start: Start, tiles: Mapping[str, TileSet]) -> None:
    """Write config.json: recipe, files, tiles, versions and machine."""
    content = {
        "recipe": asdict(recipe),
        "start": {key: str(value) if value else None for key, value in asdict(start).items()},
        "int8_places_sha256": _places_identity(start),
        "tiles": {name: _identity(part) for name, part in tiles.items()},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
    }
    write_file(run / CONFIG_FILE, (json.dumps(content, indent=2) + "\n").encode())


def read_config(run: Path, tiles: Mapping[str, TileSet]) -> tuple[Recipe, Start]:
    """What a run was started with; InputError where it is missing, or tiles or bundle are others than then."""
    path = run / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        recipe, start, known = _recipe(content["recipe"]), _start(content["start"]), content["tiles"]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: there is no run to go on with; leave --resume out") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}; start the run anew with --force") from error
    for name, part in tiles.items():
        if known.get(name) != (found := _identity(part)):
            then, now = known.get(name, {}).get("count"), found["count"]
            raise InputError(
                f"the run {run} began with other tiles in {name}: {then} then, {now} in {part.root} now, or other "
                "names or sizes; resume with the same tiles, or start anew"
            )
    if start.qat and content.get("int8_places_sha256") != _places_identity(start):
        raise InputError(
            f"the run {run} began with another bundle than {start.qat} is now; bring that back, or start anew"
        )
    return recipe, start


def _places_identity(start: Start) -> str | None:
    return places_sha256(start.places()) if start.qat else None


def _identity(tiles: TileSet) -> dict[str, Any]:
    names = "\n".join(ref.name for ref in tiles)
    return {"count": len(tiles), "side": tiles.tile, "names_sha256": hashlib.sha256(names.encode()).hexdigest()}


def _start(values: dict[str, str | None]) -> Start:
    return Start(**{key: Path(value) if value and key != "qat_graph" else value for key, value in values.items()})  # type: ignore[arg-type]


def _recipe(values: dict[str, Any]) -> Recipe:
    known = {field.name for field in fields(Recipe)}
    if values.keys() != known:
        raise ValueError(f"its recipe has {', '.join(sorted(values.keys() ^ known))} or lacks it")
    values = {**values, "loss": LossWeights(**values["loss"]), "augmentation": Augmentation(**values["augmentation"])}
    return Recipe(**{**values, "freeze": tuple(values["freeze"])})
