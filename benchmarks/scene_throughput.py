"""Compares the speed of predict on large GeoTIFFs with the speed of its engine alone, and measures its memory.

    python -m benchmarks.scene_throughput BUNDLE IMAGES/A IMAGES/B [--side 16384] [--engine NAME] [--json FILE]

Both dates are written to disk from folders of RGB images, repeated to fill a square (0.5 m per pixel, blocks of 512 px,
deflate). Then the engine alone (as in ``misgnet-run bench``) and predict alternate, on a square of --small px and on
one of --side px. A run of predict is compared with the mean of the engine's speeds directly before and after it, at the
same batch, streams and threads. Memory is the peak of the predict process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.scene_pairs import make_scene
from misgnet_runtime.bundle import Bundle, read_bundle
from misgnet_runtime.engines import batch_for_scenes, streams_for_scenes
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.formatting import plural
from misgnet_runtime.inference.throughput import measure
from misgnet_runtime.machine import describe_machine, machine_line, usable_cores
from misgnet_runtime.measure.bench.matrix import BenchMatrix, make_matrix, tasks_of
from misgnet_runtime.measure.bench.options import BenchOptions
from misgnet_runtime.measure.bench.scene import SceneTask, run_scene
from misgnet_runtime.storage.atomic import write_file

Pair = tuple[Path, Path]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of predict on a square of ``side`` px, and the engine's speed before and after it."""

    side: int
    tiles: int
    seconds: float
    tiles_per_second: float
    engine_pairs_per_second: float
    share: float
    peak_mib: float


@dataclass(frozen=True)
class Bench:
    """Measures one engine at one setting, alone and in predict."""

    bundle: Bundle
    matrix: BenchMatrix
    options: BenchOptions

    @classmethod
    def of(cls, options: argparse.Namespace) -> Bench:
        bundle = read_bundle(options.bundle)
        engines = (options.engine,) if options.engine else ()
        engine = make_matrix(bundle, BenchOptions(engines=engines, streams=(1,))).runs[0].engine
        entry = bundle.engine_entry(engine)
        batch, streams = options.batch or batch_for_scenes(entry), options.streams or streams_for_scenes(entry)
        requested = BenchOptions(
            engines=(engine,), batches=(batch,), streams=(streams,), threads=options.threads, seconds=options.seconds
        )
        return cls(bundle, make_matrix(bundle, requested), requested)

    def engine_speed(self) -> float:
        """Returns the pairs/s of the engine alone."""
        ((batch, streams),) = self.matrix.settings()
        (timing,) = measure(tasks_of(self.bundle, self.matrix, self.options, batch, streams), self.options.seconds)
        return timing.pairs_per_second

    def trials(self, pairs: dict[int, Pair], rounds: int, folder: Path) -> Iterator[Trial]:
        """Runs predict on each side in turn, ``rounds`` times, and measures the engine alone in between."""
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
    """Formats a row per run of predict, and the ratio of the peak memories of the largest and the smallest pair."""
    settings, trials = report["settings"], report["trials"]
    lines = [
        f"{machine_line(report['machine'])}; {report['engine']}, batch {settings['batch']}, "
        f"{plural(settings['streams'], 'stream')}, {plural(settings['threads'], 'thread')}",
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
    add = parser.add_argument
    add("bundle", type=Path, help="Bundle folder.")
    add("before", type=Path, help="Folder of PNG images, all of the same size.")
    add("after", type=Path, help="Folder of the later images of the same places, with the same names.")
    add("--side", type=int, default=16384, help="Side of the large pair in pixels (default: 16384).")
    add("--small", type=int, default=4096, help="Side of the small pair in pixels (default: 4096).")
    add("--engine", help="Engine of the bundle (default: the fastest that runs here).")
    add("--batch", type=int, help="Tiles per inference call (default: as in predict).")
    add("--streams", type=int, help="Batches in flight at once (default: as in predict).")
    add("--threads", type=int, help="CPU threads (default: one per core).")
    add("--rounds", type=int, default=1, help="Runs of predict on each pair (default: 1).")
    add("--seconds", type=float, default=20.0, help="Measuring time of the engine alone, each time (default: 20).")
    add("--folder", type=Path, help="Folder for the pairs, which are removed at the end (default: a temporary folder).")
    add("--json", type=Path, help="Write the figures as JSON to this file.")
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
