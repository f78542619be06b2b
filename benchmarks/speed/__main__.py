"""Compares latency, throughput, whole scenes and F1 of this project and its peers from the same weights, here.

    python -m benchmarks.speed BUNDLE --weights WEIGHTS --calib DATA/train --eval DATA/test --json F --plot F.png
    python -m benchmarks.speed WEIGHTS --calib DATA/train --val DATA/val --eval DATA/test --json F --plot F.png

Run it from the root of the checkout, on an idle machine. BUNDLE must have been built from WEIGHTS by ``misgnet-export
build``; if only WEIGHTS are given, a bundle for ONNX Runtime and OpenVINO is built first. Contenders: PyTorch eager and
torch.compile; the straight ONNX export in ONNX Runtime and OpenVINO; onnxruntime's quantize_static; NNCF with its
default, its transformer preset, and its mixed preset without attention and guidance; every CPU engine of the bundle,
and its float graph. Then ``misgnet-run predict`` runs on a pair of GeoTIFFs made of the evaluation images, against a
plain tiled loop with the straight export (benchmarks/tiled_loop.py). Peers have their own environments, installed in
--cache on first use (about a gigabyte from PyPI); each contender has its own process. A contender that fails has a row
with the reason. With --keep, a second run is much shorter, because graphs and predictions are reused if nothing that
they depend on has changed. The tables and the targets go to stdout as Markdown, progress to stderr.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.commands import add_contest_options, new_parser, report_errors
from benchmarks.contest import kept
from benchmarks.speed.plot import draw
from benchmarks.speed.report import Report
from benchmarks.speed.run import SKIPPABLE, Options, run
from benchmarks.speed.table import markdown
from misgnet_runtime.errors import UsageError
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.schema import encode


def main(arguments: list[str] | None = None) -> None:
    given = vars(_parser().parse_args(arguments))
    files = {name: given.pop(name) for name in ("json", "markdown", "plot")}
    keep = given.pop("keep")
    with report_errors():
        options = _checked(Options(**given))
        with kept.work_folder(keep) as work:
            report = run(options, work)
        _write(report, files)
    print(markdown(report), end="")


def _write(report: Report, files: dict[str, Path | None]) -> None:
    for path, data in ((files["json"], encode(report)), (files["markdown"], markdown(report).encode())):
        if path:
            write_file(path, data)
    if files["plot"]:
        draw(report, files["plot"])


def _checked(options: Options) -> Options:
    """Returns ``options``; raises UsageError for invalid numbers."""
    for name in ("threads", "rounds", "seconds", "limit", "scene_side", "scene_rounds"):
        if not getattr(options, name) > 0:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is {getattr(options, name)}; expected a number above 0")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("speed", __doc__)
    add_contest_options(parser, seconds=2.0)
    add = parser.add_argument
    add("--eval-tiles", type=int, help="Evaluate only this number of tiles, for a quick run (default: all).")
    add("--scene-side", type=int, default=4096, help="Side of the scene in pixels (default: 4096).")
    add("--scene-rounds", type=int, default=3, help="Rounds of the commands on the scene (default: 3).")
    add("--skip", nargs="+", default=(), choices=SKIPPABLE, help="Skip these contenders, or the scene (default: none).")
    add("--markdown", type=Path, help="Also write the table as Markdown to this file.")
    add("--plot", type=Path, help="Write a plot of throughput against F1 to this PNG file.")
    return parser


if __name__ == "__main__":
    main()
