"""Measures training throughput: complete training steps with bfloat16 autocast and with float32.

    python benchmarks/training_throughput.py [--batch 8] [--tile 256] [--rounds 3] [--seconds 40] [--json FILE]

A step does the same as in ``misgnet train``: read and augment generated tiles, forward, loss, backward, clip, AdamW,
average. Each precision runs in its own process; the two alternate, so that a drift of the machine's speed affects both.
The table also shows the rate of matrix products in the same type on the same machine, an upper limit for a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from misgnet_runtime.machine import describe_machine, machine_line
from misgnet_runtime.storage.atomic import write_file

PRECISIONS = ("bf16", "fp32")
# One MAC counts as two operations: 12.5 GFLOP forward for a pair of 256 x 256, and twice that backward.
GFLOP_PER_PAIR = 3 * 12.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="Pairs per step (default: 8).")
    parser.add_argument("--tile", type=int, default=256, help="Side of a tile in pixels (default: 256).")
    parser.add_argument("--rounds", type=int, default=3, help="Processes per precision (default: 3).")
    parser.add_argument("--seconds", type=float, default=40.0, help="Training time of a process (default: 40).")
    parser.add_argument("--json", type=Path, help="Write the figures as JSON to this file.")
    parser.add_argument("--child", nargs=2, metavar=("PRECISION", "TILES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], Path(options.child[1]), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = run_rounds(Path(folder), options)
    report = summary(found, options)
    print(table(report))
    if options.json:
        write_file(options.json, (json.dumps(report, indent=2) + "\n").encode())


def run_rounds(folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Generates tiles once, then trains with both precisions in alternating rounds."""
    from misgnet.synthetic import write_split

    write_split(folder, max(16, 2 * options.batch), seed=0, size=options.tile)
    found: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
    for number in range(options.rounds):
        for precision in PRECISIONS if number % 2 == 0 else PRECISIONS[::-1]:
            passed = [f"--{name}={getattr(options, name)}" for name in ("batch", "tile", "seconds")]
            command = [sys.executable, __file__, *passed, "--child", precision, str(folder)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[precision].append(json.loads(result.stdout.splitlines()[-1]))
            speed = found[precision][-1]["pairs_per_second"]
            print(f"round {number + 1}, {precision}: {speed:.2f} pairs/s", file=sys.stderr)
    return found


def measure(precision: Any, tiles: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains for ``options.seconds`` and returns the median speed of the steps, excluding the first two."""
    import torch

    from misgnet.training import Recipe, StepReport, train
    from misgnet_runtime.raster.dataset import TileSet

    data = TileSet.open(tiles, options.tile)
    recipe = Recipe(minutes=options.seconds / 60, batch=options.batch, precision=precision, validate_every=10**6)
    steps: list[StepReport] = []

    def listen(report: Any) -> None:
        if isinstance(report, StepReport):
            steps.append(report)

    with tempfile.TemporaryDirectory() as folder:
        train(data, data.subset([0]), Path(folder) / "run", recipe, device=torch.device("cpu"), listen=listen)
    speeds = [step.pairs_per_second for step in steps[2:]] or [step.pairs_per_second for step in steps]
    return {
        "pairs_per_second": statistics.median(speeds),
        "steps": len(steps),
        "gflops_matmul": matmul_rate({"bf16": torch.bfloat16, "fp32": torch.float32}[precision]),
    }


def matmul_rate(dtype: Any, side: int = 2048) -> float:
    """Returns the best rate of five products of two square matrices, in GFLOP/s."""
    import torch

    a = torch.randn(side, side).to(dtype)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times[1:]) / 1e9


def summary(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    """Returns the median, extremes and rounds of each precision, and the ratio of the medians."""
    rows = {}
    gflop = GFLOP_PER_PAIR * (options.tile / 256) ** 2
    for precision, rounds in found.items():
        speeds = [entry["pairs_per_second"] for entry in rounds]
        peak = max(entry["gflops_matmul"] for entry in rounds)
        rows[precision] = {
            "pairs_per_second": statistics.median(speeds), "lowest": min(speeds), "highest": max(speeds),
            "gflops": statistics.median(speeds) * gflop, "gflops_matmul": peak, "rounds": rounds,
        }  # fmt: skip
    ratio = rows["bf16"]["pairs_per_second"] / rows["fp32"]["pairs_per_second"]
    settings = {name: getattr(options, name) for name in ("batch", "tile", "rounds", "seconds")}
    return {"machine": describe_machine(), "settings": settings, "precisions": rows, "bf16_over_fp32": ratio}


def table(report: dict[str, Any]) -> str:
    """Formats the figures as a Markdown table."""
    settings = report["settings"]
    lines = [
        f"{machine_line(report['machine'])}; batch {settings['batch']}, {settings['tile']} px",
        "",
        "| precision | pairs/s: median (lowest to highest) | GFLOP/s | matrix product, GFLOP/s |",
        "|---|---|---|---|",
    ]
    for name, row in report["precisions"].items():
        speed = f"{row['pairs_per_second']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
        lines.append(f"| {name} | {speed} | {row['gflops']:.0f} | {row['gflops_matmul']:.0f} |")
    return "\n".join([*lines, "", f"bf16 over fp32: {report['bf16_over_fp32']:.2f}"])


if __name__ == "__main__":
    main()
