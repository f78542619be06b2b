"""Compares methods of selecting calibration tiles: representative, random and first tiles, over several seeds.

    python benchmarks/calibration_selection.py WEIGHTS --calib DATA/train --val DATA/val [--json FILE]

For each selection, activation statistics are collected, the graph is quantized for the CPU with one calibrator, and
evaluated on validation tiles that are not in the calibration set. The table shows the loss of INT8, and the distance of
the ranges from those of all calibration tiles: the mean of |log2 of their ratio|, which needs no labels and has little
noise. All selections use the same graph and tiles, so differences are caused by the selection. The first tiles are a
single set without a seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from misgnet.checkpoint import load_network
from misgnet_calibration.quantizer import recipes
from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_calibration.quantizer.quantize import quantize
from misgnet_calibration.statistics.calibrators import DEFAULT, Calibrator, named
from misgnet_calibration.statistics.observers import Range
from misgnet_calibration.statistics.tile_selection import FewTilesWarning, TileSummary, describe_tiles, draw_tiles, pick
from misgnet_export.graph.export import export_graph
from misgnet_export.graph.simplify import simplify_graph
from misgnet_export.pipeline.calibrate import observe
from misgnet_export.pipeline.validation_loss import Decision
from misgnet_export.sources.misgnet_checkpoint import encoder_features
from misgnet_runtime.bundle import Interface
from misgnet_runtime.errors import UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.machine import describe_machine, machine_line
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.raster.leakage import check_disjoint
from misgnet_runtime.storage.atomic import write_file

CPU = MISGNET.applied_to(recipes.CPU)
CHOICES = ("represent", "random", "first")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Result of one selection of tiles."""

    choice: str
    tiles: int
    seed: int
    # Mean absolute difference of the probability of change.
    mean_difference: float
    agreement: float
    f1_drop: float | None
    # In octaves.
    range_error: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Inputs shared by all trials."""

    model: onnx.ModelProto
    calib: TileSet
    descriptions: list[TileSummary]
    decision: Decision
    calibrator: Calibrator
    # Ranges on all calibration tiles.
    whole: Mapping[str, Range]

    def run(self, choice: str, count: int, seed: int) -> Trial:
        ranges = ranges_on(self.model, self._chosen(choice, count, seed), self.decision.interface, self.calibrator)
        loss = self.decision.loss(quantize(self.model, CPU, ranges, {}).model)
        return Trial(
            choice=choice, tiles=count, seed=seed, mean_difference=loss.agreement.mean, agreement=loss.agreement.pixels,
            f1_drop=loss.measurement.f1_drop, range_error=range_error(ranges, self.whole),
        )  # fmt: skip

    def _chosen(self, choice: str, count: int, seed: int) -> TileSet:
        if choice == "first":
            return self.calib.subset(range(count))
        if choice == "random":
            return draw_tiles(self.calib, count, seed)
        return self.calib.subset(list(pick(self.descriptions, count, seed)[0]))


def ranges_on(model: onnx.ModelProto, tiles: TileSet, interface: Interface, calibrator: Calibrator) -> dict[str, Range]:
    return observe(model, interface, tiles, [CPU]).ranges(calibrator, symmetric=CPU.symmetric_activations)


def range_error(found: Mapping[str, Range], whole: Mapping[str, Range]) -> float:
    """Returns the mean of |log2(width / width on all tiles)| over the activations."""
    ratios = [(found[name].high - found[name].low) / (r.high - r.low) for name, r in whole.items() if r.high > r.low]
    return float(np.abs(np.log2(np.maximum(ratios, 1e-9))).mean())


def prepare(options: argparse.Namespace) -> Bench:
    interface = Interface(options.tile, 16)
    calib, val = TileSet.open(options.calib, options.tile), TileSet.open(options.val, options.tile)
    check_disjoint(calib, val, ("calibration", "validation"))
    network = load_network(options.weights)
    model = simplify_graph(export_graph(network, interface))
    calibrator = named(options.observer)
    if calibrator is None:
        raise UsageError(f"--observer is '{options.observer}'; expected max, mse, entropy or 'percentile P'")
    decision = Decision.of(model, interface, val.spread(options.val_tiles), 0.5, lambda *_: None)
    descriptions = describe_tiles(calib, encoder_features(network), 0)
    return Bench(
        model=model,
        calib=calib,
        descriptions=descriptions,
        decision=decision,
        calibrator=calibrator,
        whole=ranges_on(model, calib, interface, calibrator),
    )


def trials(bench: Bench, counts: list[int], seeds: int) -> Iterator[Trial]:
    for count in counts:
        for choice in CHOICES:
            for seed in range(1 if choice == "first" else seeds):
                trial = bench.run(choice, count, seed)
                print(trial, file=sys.stderr, flush=True)
                yield trial


def table(found: list[Trial]) -> str:
    """Formats the mean and range over the seeds, one row per number of tiles and selection."""
    lines = [
        "| tiles | selection | mean difference, 1e-4 | differing pixels, % | F1 drop, points | range error, octaves |",
        "|---|---|---|---|---|---|",
    ]
    for count in dict.fromkeys(t.tiles for t in found):
        for choice in CHOICES:
            rows = [t for t in found if (t.tiles, t.choice) == (count, choice)]
            cells = (
                _spread([1e4 * t.mean_difference for t in rows], 2),
                _spread([100 * (1 - t.agreement) for t in rows], 3),
                _spread([t.f1_drop for t in rows if t.f1_drop is not None], 3),
                _spread([t.range_error for t in rows], 3),
            )
            lines.append(f"| {count} | {choice} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return "n/a"
    middle = f"{statistics.mean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("weights", type=Path, help="Checkpoint.")
    add("--calib", type=Path, required=True, help="Folder of A/ B/ label/ to select from.")
    add("--val", type=Path, required=True, help="Folder of A/ B/ label/ on which INT8 is evaluated.")
    add("--tiles", type=int, nargs="+", default=[16, 32, 64], help="Numbers of tiles (default: 16 32 64).")
    add("--seeds", type=int, default=5, help="Seeds of each selection that uses one (default: 5).")
    add("--observer", default=DEFAULT.name, help=f"Calibrator (default: {DEFAULT.name}).")
    add("--tile", type=int, default=256, help="Side of a tile in pixels (default: 256).")
    add("--val-tiles", type=int, default=32, help="Validation tiles, evenly spread (default: 32).")
    add("--json", type=Path, help="Write all trials as JSON to this file.")
    options = parser.parse_args()
    warnings.simplefilter("ignore", FewTilesWarning)
    bench = prepare(options)
    found = list(trials(bench, options.tiles, options.seeds))
    print(table(found))
    tiles = plural(len(bench.calib), "tile")
    print(f"\n{tiles} to select from, {bench.calibrator.name}; {machine_line(describe_machine())}")
    if options.json:
        report: dict[str, Any] = {"machine": describe_machine(), "observer": bench.calibrator.name}
        text = json.dumps({**report, "trials": [asdict(t) for t in found]}, indent=2)
        write_file(options.json, f"{text}\n".encode())


if __name__ == "__main__":
    main()
