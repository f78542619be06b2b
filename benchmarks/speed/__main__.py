"""This project beside its peers: latency, throughput and F1 from the same weights, on this machine.

    python -m benchmarks.speed BUNDLE --weights WEIGHTS --calib DATA/train --eval DATA/test --json F --plot F.png
    python -m benchmarks.speed WEIGHTS --calib DATA/train --val DATA/val --eval DATA/test --json F --plot F.png

Run it from the checkout's root, on a quiet machine. BUNDLE was made of WEIGHTS by ``misgnet-export build``; from
WEIGHTS alone one is built first, for ONNX Runtime and OpenVINO. Contenders: PyTorch eager and torch.compile; the
straight ONNX export in ONNX Runtime and OpenVINO; onnxruntime's quantize_static; NNCF with both of its presets; every
engine of the bundle that is for a CPU. Peers have environments of their own, installed below --cache the first time (a
gigabyte from PyPI); everybody has a process of its own. A contender that fails is a row that says why. With --keep a
second run is much shorter: graphs and answers are taken again where nothing that they depend on has changed. The table
goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.commands import add_contest_options, new_parser, told_errors
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
    with told_errors():
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
    """UsageError for numbers that cannot be meant."""
    for name in ("threads", "rounds", "seconds", "limit"):
        if not getattr(options, name) > 0:
            raise UsageError(f"--{name} is {getattr(options, name)}; it is above 0")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("speed", __doc__)
    add_contest_options(parser, seconds=2.0)
    add = parser.add_argument
    add("--eval-tiles", type=int, help="judge on the first ones only, for a quick look [all]")
    add("--skip", nargs="+", default=(), choices=SKIPPABLE, help="leave these contenders out")
    add("--markdown", type=Path, help="write the table as Markdown, too")
    add("--plot", type=Path, help="write throughput against F1 as PNG")
    return parser


if __name__ == "__main__":
    main()
