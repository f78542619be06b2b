"""Builds this project's bundle, finds the tile sets it was built with, and reads its build evidence."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misgnet_calibration.statistics.tile_selection import FewTilesWarning, draw_tiles
from misgnet_runtime.bundle import Bundle
from misgnet_runtime.children import environment, python_command
from misgnet_runtime.errors import InputError, MisgnetError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.raster.leakage import check_disjoint


@dataclass(frozen=True)
class Sets:
    """The tile sets of a comparison."""

    # Tiles with which every contender is calibrated.
    calibration: TileSet
    # How the calibration tiles were chosen.
    chosen: str
    # Tiles on which every contender is evaluated.
    evaluation: TileSet

    def summary(self) -> dict[str, Any]:
        """Returns numbers and digests for the report."""
        return {
            "calibration_tiles": len(self.calibration),
            "calibration_chosen": self.chosen,
            "calibration_sha256": self.calibration.digest(),
            "evaluation_tiles": len(self.evaluation),
            "evaluation_images": len(self.evaluation.sources),
            "evaluation_sha256": self.evaluation.digest(),
        }


@dataclass(frozen=True)
class Recorded:
    """Build evidence of a bundle."""

    # By engine.
    f1: dict[str, float]
    evaluation_sha256: str
    # Time from the float graph to the INT8 graph.
    seconds: float | None
    # Build stages included in ``seconds``.
    stages: list[str]


def build_bundle(weights: Path, options: list[str], output: Path) -> Path:
    """Builds a bundle from ``weights``; raises MisgnetError if the build fails, which prints its own message."""
    module = "misgnet_export"
    command = python_command(module, "build", str(weights), *options, "-o", str(output))
    code = subprocess.run(command, check=False, stdout=sys.stderr, env=environment(module)).returncode
    if code:
        error = MisgnetError(f"building a bundle from {weights} failed; see the message above")
        error.exit_code = code
        raise error
    return output


def open_sets(bundle: Bundle, calib: Path, evaluation: Path) -> Sets:
    """Finds the bundle's calibration tiles in ``calib``, and opens the evaluation tiles.

    Raises:
        InputError: The calibration tiles are not in ``calib``, so contenders could not be compared on the same tiles.
    """
    made = bundle.manifest.calibration
    drawn = _calibration_tiles(bundle, TileSet.open(calib, bundle.manifest.tile))
    evaluated = TileSet.open(evaluation, bundle.manifest.tile)
    check_disjoint(drawn, evaluated, ("calibration", "evaluation"))
    return Sets(drawn, made.selection, evaluated)


def _calibration_tiles(bundle: Bundle, tiles: TileSet) -> TileSet:
    """Returns the tiles whose digest the manifest states, among the selections that a build may have made."""
    made = bundle.manifest.calibration
    for indices in _choices(bundle, tiles):
        found = tiles.subset(indices)
        if found.digest() == made.tiles_sha256:
            return found
    raise InputError(
        f"bundle {bundle.path} was calibrated on {plural(made.tiles, 'tile')} that are not in {tiles.root}; "
        "pass the folder that it was built with as --calib"
    )


def _choices(bundle: Bundle, tiles: TileSet) -> Iterator[list[int]]:
    """Yields possible selections: by name from the bundle's evidence, drawn with its seed, and the first tiles."""
    made, index = bundle.manifest.calibration, {ref.name: i for i, ref in enumerate(tiles)}
    if (bundle.path / "evidence" / "selection.json").is_file():
        yield [index[tile["name"]] for tile in _evidence(bundle, "selection")["tiles"] if tile["name"] in index]
    count = min(made.tiles, len(tiles))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewTilesWarning)  # the build has warned already
        drawn = draw_tiles(tiles, count, made.seed)
    yield [index[ref.name] for ref in drawn]
    yield list(range(count))


def recorded(bundle: Bundle) -> Recorded:
    """Reads the build evidence; raises InputError if the bundle has none."""
    parity, build = (_evidence(bundle, name) for name in ("parity", "build"))
    scores = {entry["engine"]: entry.get("scores", {}).get("f1") for entry in parity["engines"]}
    f1 = {engine: value for engine, value in scores.items() if value is not None}
    stages = [stage for stage in build["stages"] if _makes_int8(stage["name"])]
    seconds = sum(stage["seconds"] for stage in stages) if stages else None
    return Recorded(f1, parity["evaluation_sha256"], seconds, [stage["name"] for stage in stages])


def _makes_int8(stage: str) -> bool:
    """Returns whether a build stage is part of making the INT8 graph for the CPU from the float graph."""
    # Tile selection does not count: the other contenders receive the selected tiles.
    elsewhere = ("select", "tensorrt", "rtx", "evaluate", "compile", "throughput")
    words = ("calibrat", "quanti", "repair", "accuracy")
    name = stage.lower()
    return any(word in name for word in words) and not any(word in name for word in elsewhere)


def _evidence(bundle: Bundle, name: str) -> Any:
    path = bundle.path / "evidence" / f"{name}.json"
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; build the bundle again") from error
