"""How near predict on large GeoTIFFs comes to its engine alone, and how much memory it takes.

    python benchmarks/scene_throughput.py BUNDLE IMAGES/A IMAGES/B [--side 16384] [--engine NAME] [--json FILE]

Both dates are made on disk of folders of RGB images, repeated until they fill a square (0.5 m a pixel, blocks of
512 px, deflate). Then the engine alone, as ``misgnet-run bench`` measures it, and predict take turns, on a square of
--small px and on one of --side px. A run of predict is compared with the mean of the engine's figures right before
and after it, at the same batch, streams and threads. Memory: the most that the process of predict had in use.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from misgnet_runtime.bundle import Bundle, read_bundle
from misgnet_runtime.engines import batch_for_scenes, streams_for_scenes
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import InputError
from misgnet_runtime.inference.throughput import measure
from misgnet_runtime.machine import describe_machine, machine_line, usable_cores
from misgnet_runtime.measure.bench.matrix import BenchMatrix, make_matrix, tasks_of
from misgnet_runtime.measure.bench.options import BenchOptions
from misgnet_runtime.measure.bench.scene import SceneTask, run_scene
from misgnet_runtime.raster.images import image_size, read_image
from misgnet_runtime.storage.atomic import write_file

METRES_PER_PIXEL = 0.5
BLOCK = 512
Pair = tuple[Path, Path]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of predict on a square of ``side`` px, and the engine's speed around it in pairs/s."""

    side: int
    tiles: int
    seconds: float
    tiles_per_second: float
    engine_pairs_per_second: float
    share: float
    peak_mib: float


def make_scene(path: Path, folder: Path, side: int) -> Path:
    """A GeoTIFF of ``side`` x ``side`` px from the images of ``folder``, one after the other; holds one at a time.

    Raises InputError where there are none, or not all of one size.
    """
    import rasterio
    from rasterio.transform import from_origin

    images = sorted(folder.glob("*.png"))
    sizes = {image_size(image) for image in images}
    if len(sizes) != 1:
        raise InputError(f"{folder} has {len(images)} PNG images of {len(sizes)} sizes; it must have some, all of one")
    profile = {
        "driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "crs": "EPSG:32633",
        "transform": from_origin(400_000, 5_000_000, METRES_PER_PIXEL, METRES_PER_PIXEL), "photometric": "RGB",
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "interleave": "pixel",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as scene:
        for image, (top, left, height, width) in zip(cycle(images), cells(side, *sizes.pop()), strict=False):
            pixels = read_image(image)[:height, :width].transpose(2, 0, 1)
            scene.write(pixels, window=rasterio.windows.Window(left, top, width, height))
    return path


def cells(side: int, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Top, left, height and width of the images in a square, row by row; those at its end are cut."""
    for top in range(0, side, height):
        for left in range(0, side, width):
            yield top, left, min(height, side - top), min(width, side - left)


@dataclass(frozen=True)
class Bench:
    """One engine at one setting, alone and in predict."""

    bundle: Bundle
    matrix: BenchMatrix
    options: BenchOptions

    @classmethod
    def of(cls, options: argparse.Namespace) -> Bench:
        bundle = read_bundle(options.bundle)
        asked = (options.engine,) if options.engine else ()
        engine = make_matrix(bundle, BenchOptions(engines=asked, streams=(1,))).runs[0].engine
        entry = bundle.engine_entry(engine)
        batch, streams = options.batch or batch_for_scenes(entry), options.streams or streams_for_scenes(entry)
        wishes = BenchOptions(
            engines=(engine,), batches=(batch,), streams=(streams,), threads=options.threads, seconds=options.seconds
        )
        return cls(bundle, make_matrix(bundle, wishes), wishes)

    def engine_speed(self) -> float:
        """Pairs/s of the engine alone."""
        ((batch, streams),) = self.matrix.settings()
        (timing,) = measure(tasks_of(self.bundle, self.matrix, self.options, batch, streams), self.options.seconds)
        return timing.pairs_per_second

    def trials(self, pairs: dict[int, Pair], rounds: int, folder: Path) -> Iterator[Trial]:
        """Each side in turn, ``rounds`` times, with the engine alone in between."""
        before = self.engine_speed()
        for number in range(rounds):
            for side, pair in pairs.items():
                found = run_scene(self._task(pair, folder / f"change_{side}_{number}.tif"))
                after = self.engine_speed()
                speed, alone = found.tiles / found.seconds, (before + after) / 2
                yield Trial(
                    side=side,
                    tiles=found.tiles,
                    seconds=found.seconds,
                    tiles_per_second=speed,
                    engine_pairs_per_second=alone,
                    share=speed / alone,
                    peak_mib=found.peak_bytes / 2**20,
                )
                before = after

    def _task(self, pair: Pair, output: Path) -> SceneTask:
        ((batch, streams),) = self.matrix.settings()
        return SceneTask(
            bundle=self.bundle.path, before=pair[0], after=pair[1], output=output, engine=self.matrix.runs[0].engine,
            execution=ExecutionOptions(threads=self.options.threads, streams=streams, batch=batch),
        )  # fmt: skip


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    bench = Bench.of(options)
    pairs = {}
    for side in (options.small, options.side):
        print(f"making a pair of {side} px", file=sys.stderr, flush=True)
        before, after = (folder / f"{side}_{date}.tif" for date in ("before", "after"))
        pairs[side] = make_scene(before, options.before, side), make_scene(after, options.after, side)
    trials = []
    for trial in bench.trials(pairs, options.rounds, folder):
        print(trial, file=sys.stderr, flush=True)
        trials.append(asdict(trial))
    settings = {name: getattr(options, name) for name in ("seconds", "rounds")}
    settings |= {
        "batch": bench.matrix.batches[0],
        "streams": bench.matrix.streams[0],
        "threads": options.threads or usable_cores(),
    }
    engine = bench.matrix.runs[0].engine
    return {"machine": describe_machine(), "engine": engine, "settings": settings, "trials": trials}


def table(report: dict[str, Any]) -> str:
    """A row a run of predict, and how the memory of the largest pair compares with that of the smallest."""
    settings, trials = report["settings"], report["trials"]
    lines = [
        f"{machine_line(report['machine'])}; {report['engine']}, batch {settings['batch']}, "
        f"{settings['streams']} streams, {settings['threads']} threads",
        "",
        "| side, px | tiles | seconds | tiles/s | engine alone, pairs/s | share | peak memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {t['side']} | {t['tiles']} | {t['seconds']:.1f} | {t['tiles_per_second']:.2f} | "
        f"{t['engine_pairs_per_second']:.2f} | {t['share']:.3f} | {t['peak_mib']:.0f} |"
        for t in trials
    ]
    peaks = {side: max(t["peak_mib"] for t in trials if t["side"] == side) for side in {t["side"] for t in trials}}
    ratio = peaks[max(peaks)] / peaks[min(peaks)]
    return "\n".join([*lines, "", f"memory of {max(peaks)} px over that of {min(peaks)} px: {ratio:.3f}"])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a bundle")
    parser.add_argument("before", type=Path, help="folder of PNG images, all of one size")
    parser.add_argument("after", type=Path, help="the later date of the same places, with the same names")
    parser.add_argument("--side", type=int, default=16384, help="side of the large pair, px [16384]")
    parser.add_argument("--small", type=int, default=4096, help="side of the small pair, px [4096]")
    parser.add_argument("--engine", help="an engine of the bundle [the fastest that runs here]")
    parser.add_argument("--batch", type=int, help="tiles that the engine gets at once [what predict takes]")
    parser.add_argument("--streams", type=int, help="batches at once [what predict takes]")
    parser.add_argument("--threads", type=int, help="that compute on the CPU [one a core]")
    parser.add_argument("--rounds", type=int, default=1, help="runs of predict on each pair [1]")
    parser.add_argument("--seconds", type=float, default=20.0, help="that the engine alone is measured each time [20]")
    parser.add_argument("--folder", type=Path, help="where the pairs are made, and removed again [a temporary folder]")
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    return parser


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report = run(options, Path(folder))
    print(table(report))
    if options.json:
        write_file(options.json, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
