"""This project's side: a bundle, the sets that it was built with, and what it says of its own build."""

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
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.raster.leakage import check_disjoint


@dataclass(frozen=True)
class Sets:
    """The tiles that calibrate every contender, how they were chosen, and the tiles that judge."""

    calibration: TileSet
    chosen: str
    evaluation: TileSet

    def facts(self) -> dict[str, Any]:
        """For a report."""
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
    """What the bundle says of its own build: F1 by engine, and the seconds from float graph to INT8 graph."""

    f1: dict[str, float]
    evaluation_sha256: str
    seconds: float | None
    stages: list[str]


def build_bundle(weights: Path, options: list[str], output: Path) -> Path:
    """Build a bundle of ``weights``; raises MisgnetError where the build fails, after its own words."""
    module = "misgnet_export.cli"
    command = python_command(module, "build", str(weights), *options, "-o", str(output))
    code = subprocess.run(command, check=False, stdout=sys.stderr, env=environment(module)).returncode
    if code:
        error = MisgnetError(f"the bundle of {weights} could not be built; its own message is above")
        error.exit_code = code
        raise error
    return output


def open_sets(bundle: Bundle, calib: Path, evaluation: Path) -> Sets:
    """The tiles that the bundle was calibrated on, found again in ``calib``, and those that judge.

    Raises InputError where they are not there: then others would not be compared on the same tiles.
    """
    made = bundle.manifest.calibration
    drawn = _calibration_tiles(bundle, TileSet.open(calib, bundle.manifest.tile))
    judging = TileSet.open(evaluation, bundle.manifest.tile)
    check_disjoint(drawn, judging, ("calibration", "evaluation"))
    return Sets(drawn, made.selection, judging)


def _calibration_tiles(bundle: Bundle, tiles: TileSet) -> TileSet:
    """The tiles with the digest that the manifest states, among those that a build may have chosen."""
    made = bundle.manifest.calibration
    for indices in _choices(bundle, tiles):
        found = tiles.subset(indices)
        if found.digest() == made.tiles_sha256:
            return found
    raise InputError(
        f"bundle {bundle.path} was calibrated on {made.tiles} tiles that are not in {tiles.root}; "
        "name the folder that it was built with as --calib"
    )


def _choices(bundle: Bundle, tiles: TileSet) -> Iterator[list[int]]:
    """By name from the bundle's evidence, drawn from its seed, or the first ones."""
    made, index = bundle.manifest.calibration, {ref.name: i for i, ref in enumerate(tiles)}
    if (bundle.path / "evidence" / "selection.json").is_file():
        yield [index[tile["name"]] for tile in _evidence(bundle, "selection")["tiles"] if tile["name"] in index]
    count = min(made.tiles, len(tiles))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewTilesWarning)  # the build has warned
        drawn = draw_tiles(tiles, count, made.seed)
    yield [index[ref.name] for ref in drawn]
    yield list(range(count))


def recorded(bundle: Bundle) -> Recorded:
    """Read the evidence; InputError where the bundle has none."""
    parity, build = (_evidence(bundle, name) for name in ("parity", "build"))
    scores = {entry["engine"]: entry.get("scores", {}).get("f1") for entry in parity["engines"]}
    f1 = {engine: value for engine, value in scores.items() if value is not None}
    stages = [stage for stage in build["stages"] if _makes_int8(stage["name"])]
    seconds = sum(stage["seconds"] for stage in stages) if stages else None
    return Recorded(f1, parity["evaluation_sha256"], seconds, [stage["name"] for stage in stages])


def _makes_int8(stage: str) -> bool:
    """Whether a stage of a build belongs to the way from the float graph to the INT8 graph for the CPU."""
    # Selecting tiles does not count: the others get the selected ones for nothing.
    elsewhere = ("select", "tensorrt", "rtx", "judge", "compile", "throughput")
    words = ("calibrat", "quanti", "repair", "accuracy")
    name = stage.lower()
    return any(word in name for word in words) and not any(word in name for word in elsewhere)


def _evidence(bundle: Bundle, name: str) -> Any:
    path = bundle.path / "evidence" / f"{name}.json"
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; build the bundle again") from error
